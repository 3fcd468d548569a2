"""MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601). Sizes: `vit_jax.configs.models`."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.block import run_blocks
from vit_jax.layers.drop import DropPath
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.mlp import MlpBlock
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.tokens import patch_tokens


class MixerBlock(nn.Module):
    """An MLP over the tokens, then one over the channels (ibid., equation 1).

    [N, T, D] -> [N, T, D]; T is fixed by the parameters.
    """

    tokens_mlp_dim: int
    channels_mlp_dim: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, drop_path_rate: float | jax.Array, *, train: bool):
        y = LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x)
        y = y.swapaxes(1, 2)
        y = MlpBlock(self.tokens_mlp_dim, dtype=self.dtype, name="token_mixing")(y, train=train)
        y = y.swapaxes(1, 2)
        x = x + DropPath(name="residual_0")(y, drop_path_rate, train=train)
        y = LayerNorm(dtype=self.dtype, name="LayerNorm_1")(x)
        y = MlpBlock(self.channels_mlp_dim, dtype=self.dtype, name="channel_mixing")(y, train=train)
        return x + DropPath(name="residual_1")(y, drop_path_rate, train=train)


class MlpMixer(ImageModel):
    """Images [N, H, W, 3] in [-1, 1] to logits [N, num_classes], float32 or wider.

    Attributes:
      patches: {'size': (height, width)} in pixels.
      num_classes: 0 returns the features [N, hidden_dim].
      drop_path_rate, remat, scan, dtype: As in `vit_jax.models.vit`.
    """

    patches: Mapping[str, Any]
    num_classes: int
    num_blocks: int
    hidden_dim: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    model_name: str | None = None
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        size = self.patches["size"]
        x = patch_tokens(inputs, self.hidden_dim, size, dtype=self.dtype, name="stem")
        x = run_blocks(
            functools.partial(
                MixerBlock, self.tokens_mlp_dim, self.channels_mlp_dim, dtype=self.dtype
            ),
            x,
            depth=self.num_blocks,
            name="MixerBlock",
            train=train,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
            scan=self.scan,
        )
        x = LayerNorm(dtype=self.dtype, name="pre_head_layer_norm")(x).mean(axis=1)
        zeros = nn.initializers.zeros
        return classify(x, self.num_classes, kernel_init=zeros, dtype=self.dtype)

"""DINOv2, with and without registers.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision" (arXiv:2304.07193),
and Darcet et al. 2024, "Vision Transformers Need Registers" (arXiv:2309.16588). Sizes:
`vit_jax.families.dinov2`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError, chosen
from vit_jax.layers.block import run_blocks, vit_block
from vit_jax.layers.drop import LayerScale, drop_path_rates
from vit_jax.layers.encoder import Encoder, encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.masking import Corruption, corrupt_tokens
from vit_jax.layers.mlp import GatedMlp
from vit_jax.layers.norm import CentredLayerNorm
from vit_jax.layers.patch import PatchSize
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.tokens import insert_registers, patch_tokens, prepend_tokens, show_patches

# What a head reads: the class tokens of so many last blocks, and whether the mean of the patches.
HEADS = {"token": (1, False), "token_mean": (1, True), "four_tokens_mean": (4, True)}


class LastBlocks(Encoder):
    """An encoder that gives what each of its last blocks gives, after the final norm.

    Attributes: as in `Encoder`; and
      count: How many blocks, the last one included.
    """

    count: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, **context: Any) -> list[jax.Array]:
        if self.count > 1 and self.scan:
            raise UserError("blocks that are scanned show the last one's output alone: scan=False")
        x, rates = self.prepare(x, train), drop_path_rates(self.drop_path_rate, self.num_layers)
        run = functools.partial(
            run_blocks,
            self.make_block(),
            name="encoderblock",
            train=train,
            remat=self.remat,
            scan=self.scan,
            context=context,
        )
        together = self.num_layers - self.count + 1
        outputs = [run(x, depth=together, drop_path_rate=rates[:together])]
        for i in range(together, self.num_layers):
            outputs.append(run(outputs[-1], depth=1, first=i, drop_path_rate=rates[i : i + 1]))
        norm = self.norm(dtype=self.dtype, name="encoder_norm")
        return [norm(x) for x in outputs]


class DINOv2(ImageModel):
    """Images [N, H, W, 3] to features [N, D], or to logits of a linear head on them.

    Attributes:
      num_classes: 0 returns the class token, after the final norm.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      gated_mlp: Whether the MLPs are gated, as the largest model's (arXiv:2304.07193, Table 17).
      head_reads: What the head reads: 'token', the class token [D]; 'token_mean', it and the mean
        of the patches [2 D]; 'four_tokens_mean', the class tokens of the last four blocks and the
        mean of the last one's patches [5 D] (ibid., appendix B.3). It changes no features.
      layer_scale_init: What each element of a branch's scale is at first.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    gated_mlp: bool = False
    head_reads: str = "token"
    layer_scale_init: float = 1e-5
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, corruption: Corruption | None = None
    ) -> jax.Array:
        """`corruption` says which embedded patches become the mask token or another patch."""
        num_blocks, reads_patches = chosen(self.head_reads, HEADS, "head_reads")
        embedded = patch_tokens(images, self.hidden_size, self.patch_size, dtype=self.dtype)
        x = corrupt_tokens(self, embedded, corruption, mask_token=True, name="mask_token")
        x = AddPositionEmbs(name="posembed_input")(prepend_tokens(self, x, "cls"))
        x = self.with_registers(x)
        encoder = encoder_of(
            self,
            LastBlocks,
            count=num_blocks if self.num_classes else 1,
            block=functools.partial(
                vit_block,
                mlp=GatedMlp if self.gated_mlp else None,
                norm=CentredLayerNorm,
                residual=functools.partial(LayerScale, self.layer_scale_init),
            ),
            norm=CentredLayerNorm,
        )
        outputs = encoder(x, train=train)
        patches = outputs[-1][:, -embedded.shape[1] :]
        show_patches(self, embedded, patches)
        if not self.num_classes:
            return classify(outputs[-1][:, 0], 0)
        read = [x[:, 0] for x in outputs] + [patches.mean(axis=1)] * reads_patches
        return classify(jnp.concatenate(read, axis=-1), self.num_classes, dtype=self.dtype)

    def with_registers(self, x: jax.Array) -> jax.Array:
        """The tokens that the first block gets: there are no registers."""
        return x


class RegisterDINOv2(DINOv2):
    """DINOv2 with learned tokens between the class token and the patches, which have no position.

    Attributes: as in `DINOv2`; and
      num_registers: How many.
    """

    num_registers: int = 4

    def with_registers(self, x: jax.Array) -> jax.Array:
        return insert_registers(self, x, self.num_registers, first=1)

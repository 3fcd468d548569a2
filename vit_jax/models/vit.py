"""Vision Transformer and its hybrids with a ResNet.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929). Fields and parameter
names are those of the original code. Sizes: `vit_jax.configs.models`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.layers import encoder as layers
from vit_jax.layers.block import Factory, google_block
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import GroupNorm
from vit_jax.layers.patch import embed_patches
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.resnet import ResNetStage, StdConv
from vit_jax.layers.tokens import map_tokens, prepend_tokens

CLASSIFIERS = ("token", "gap", "unpooled", "token_unpooled")


class Encoder(layers.Encoder):
    """Positions, dropout, blocks, final norm: [N, T, D] -> [N, T, D].

    Attributes: as in `vit_jax.layers.encoder.Encoder`, with the original's defaults; and
      add_position_embedding: Whether positions are added, and their dropout with them.
    """

    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    positions: Factory | None = AddPositionEmbs
    block: Callable[..., Factory] = google_block
    add_position_embedding: bool = True

    def prepare(self, x: jax.Array, train: bool) -> jax.Array:
        return super().prepare(x, train) if self.add_position_embedding else x


class VisionTransformer(ImageModel):
    """Images [N, H, W, 3] in [-1, 1] to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patches: {'size': (height, width)} in pixels, or in cells of the ResNet's map.
      transformer: Fields of `Encoder`; None leaves the encoder out, and the tokens as a map.
      hidden_size: D, the width of a token.
      resnet: {'num_layers': units per stage, 'width_factor': of 64 channels} of a hybrid.
      representation_size: Width of a tanh layer before the head, None for none.
      classifier: 'token' reads the class token, 'gap' the mean over tokens; 'unpooled' and
        'token_unpooled' apply the head to every token, without and with a class token.
      encoder: Class that `transformer` parameterises.
      dtype: Type to compute in, of logits too before they are widened; None follows images and
        parameters. Softmax and the statistics of norms stay in float32.

    Raises:
      UserError: for an unknown classifier, or an image smaller than one patch.
    """

    num_classes: int
    patches: Mapping[str, Any]
    transformer: Mapping[str, Any] | None
    hidden_size: int
    resnet: Mapping[str, Any] | None = None
    representation_size: int | None = None
    classifier: str = "token"
    head_bias_init: float = 0.0
    encoder: type[nn.Module] = Encoder
    model_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        if self.classifier not in CLASSIFIERS:
            raise UserError(f"classifier={self.classifier!r}; expected one of {CLASSIFIERS}")
        x = inputs if self.resnet is None else self._resnet(inputs, **self.resnet)
        x = embed_patches(
            x, self.hidden_size, self.patches["size"], dtype=self.dtype, name="embedding"
        )
        if self.transformer is not None:
            x = map_tokens(x)
            if self.classifier in ("token", "token_unpooled"):
                x = prepend_tokens(self, x, "cls", init=nn.initializers.zeros)
            x = self.encoder(name="Transformer", **{"dtype": self.dtype, **self.transformer})(
                x, train=train
            )
        if self.classifier == "token":
            x = x[:, 0]
        elif self.classifier == "gap":
            x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        if self.representation_size is not None:
            x = nn.tanh(nn.Dense(self.representation_size, dtype=self.dtype, name="pre_logits")(x))
        return classify(
            x,
            self.num_classes,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(self.head_bias_init),
            dtype=self.dtype,
        )

    def _resnet(
        self, x: jax.Array, num_layers: tuple[int, ...], width_factor: float = 1
    ) -> jax.Array:
        """The root quarters height and width, each stage after the first halves them."""
        width = int(64 * width_factor)
        x = StdConv(width, (7, 7), (2, 2), use_bias=False, dtype=self.dtype, name="conv_root")(x)
        x = nn.relu(GroupNorm(dtype=self.dtype, name="gn_root")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, units in enumerate(num_layers):
            stride = 1 if i == 0 else 2
            x = ResNetStage(units, width * 2**i, stride, dtype=self.dtype, name=f"block{i + 1}")(x)
        return x

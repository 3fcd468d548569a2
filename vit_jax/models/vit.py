"""Vision Transformer and its hybrids with a ResNet.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929). Fields and parameter
names are those of the original code. Sizes: `vit_jax.configs.models`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from vit_jax.errors import UserError, chosen
from vit_jax.layers import encoder as layers
from vit_jax.layers.block import Factory, google_block
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.masking import Corruption, corrupt_tokens
from vit_jax.layers.norm import GroupNorm
from vit_jax.layers.patch import embed_patches
from vit_jax.layers.pool import MAPHead
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.position_encoder import PositionEncoder
from vit_jax.layers.resnet import ResNetStage, StdConv
from vit_jax.layers.tokens import map_tokens, prepend_tokens, show_patches

CLASSIFIERS = ("token", "gap", "map", "first", "unpooled", "token_unpooled")


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


# By name, as a config says it.
ENCODERS: dict[str, type[nn.Module]] = {"plain": Encoder, "positions": PositionEncoder}


def encoder_class(encoder: type[nn.Module] | str) -> type[nn.Module]:
    """The class, or that of a name; UserError for an unknown one."""
    return chosen(encoder, ENCODERS, "encoder") if isinstance(encoder, str) else encoder


class VisionTransformer(ImageModel):
    """Images [N, H, W, 3] in [-1, 1] to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patches: {'size': (height, width)} in pixels, or in cells of the ResNet's map.
      transformer: Fields of `Encoder`; None leaves the encoder out, and the tokens as a map.
      hidden_size: D, the width of a token.
      resnet: {'num_layers': units per stage, 'width_factor': of 64 channels} of a hybrid.
      representation_size: Width of a tanh layer before the head, None for none.
      classifier: 'token' reads the class token, 'gap' the mean over tokens, 'map' what `MAPHead`
        makes of them, 'first' the first patch, as big_vision does where its models say `0`;
        'unpooled' and 'token_unpooled' apply the head to every token, without and with a class
        token.
      encoder: Class that `transformer` parameterises, or its name in `ENCODERS`; one with a field
        `grid` is told rows and columns of patches.
      mask_token: Whether there is a learned token that masked patches become, for pretraining by
        masked patch prediction.
      dtype: Type to compute in, of logits too before they are widened; None follows images and
        parameters. Softmax and the statistics of norms stay in float32.

    Raises:
      UserError: for an unknown classifier, 'map' without an encoder, or an image smaller than one
        patch.
    """

    num_classes: int
    patches: Mapping[str, Any]
    transformer: Mapping[str, Any] | None
    hidden_size: int
    resnet: Mapping[str, Any] | None = None
    representation_size: int | None = None
    classifier: str = "token"
    head_bias_init: float = 0.0
    encoder: type[nn.Module] | str = "plain"
    mask_token: bool = False
    model_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, train: bool, corruption: Corruption | None = None
    ) -> jax.Array:
        """`corruption` says which embedded patches become the mask token or another patch."""
        if self.classifier not in CLASSIFIERS:
            raise UserError(f"classifier={self.classifier!r}; expected one of {CLASSIFIERS}")
        x = inputs if self.resnet is None else self._resnet(inputs, **self.resnet)
        x = embed_patches(
            x, self.hidden_size, self.patches["size"], dtype=self.dtype, name="embedding"
        )
        if self.transformer is not None:
            fields = {"dtype": self.dtype, **self.transformer}
            encoder = encoder_class(self.encoder)
            if "grid" in encoder.__dataclass_fields__:
                fields["grid"] = (x.shape[1], x.shape[2])
            embedded = map_tokens(x)
            x = corrupt_tokens(self, embedded, corruption, mask_token=self.mask_token)
            if self.classifier in ("token", "token_unpooled"):
                x = prepend_tokens(self, x, "cls", init=nn.initializers.zeros)
            x = encoder(name="Transformer", **fields)(x, train=train)
            show_patches(self, embedded, x[:, -embedded.shape[1] :])
        if self.classifier == "token":
            x = x[:, 0]
        elif self.classifier == "first":
            x = map_tokens(x)[:, 0]
        elif self.classifier == "map":
            x = self._map_head()(x, train=train)
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

    def _map_head(self) -> nn.Module:
        """Its sizes are those of a block, as in big_vision."""
        if self.transformer is None:
            raise UserError("classifier='map' takes its sizes from `transformer`, which is None")
        sizes = (self.transformer[name] for name in ("num_heads", "mlp_dim"))
        return MAPHead(*sizes, dtype=self.dtype, name="MAPHead_0")

    def _resnet(
        self, x: jax.Array, num_layers: tuple[int, ...], width_factor: float = 1
    ) -> jax.Array:
        """The root quarters height and width, each stage after the first halves them."""
        width = int(64 * width_factor)
        x = StdConv(width, (7, 7), (2, 2), dtype=self.dtype, name="conv_root")(x)
        x = nn.relu(GroupNorm(dtype=self.dtype, name="gn_root")(x))
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        for i, units in enumerate(num_layers):
            stride = 1 if i == 0 else 2
            x = ResNetStage(units, width * 2**i, stride, dtype=self.dtype, name=f"block{i + 1}")(x)
        return x

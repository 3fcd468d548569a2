"""LV-ViT: a deeper stem, damped residuals, and a head for every token.

Jiang et al. 2021, "All Tokens Matter: Token Labeling for Training Better Vision Transformers"
(arXiv:2104.10858). Sizes: `vit_jax.families.lvvit`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from vit_jax.errors import chosen
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import Factory, vit_block
from vit_jax.layers.drop import DropPath
from vit_jax.layers.encoder import Encoder, encoder_of
from vit_jax.layers.head import classify_tokens
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.patch import PatchSize, embed_patches, sides
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.stem import ConvStem
from vit_jax.layers.tokens import exchange_tokens, map_tokens, prepend_tokens


class Damped(nn.Module):
    """A residual branch over a constant (ibid., section 3.1).

    Attributes:
      divisor: λ. Branches of a deep model add up to less when it is larger than 1.
    """

    divisor: float

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, *, train: bool) -> jax.Array:
        return DropPath(name="DropPath_0")(x, rate, train=train) / self.divisor


class Branch(nn.Module):
    """x += branch(norm(λ x)) / λ: half of a block, under the names that a whole one gives it.

    [N, T, D] -> [N, T, D]. The official code has it, and no published model.

    Attributes:
      kind: 'mha', attention, or 'ffn', the MLP.
      divisor: λ.
      attention, mlp, norm, residual: As in `vit_jax.layers.block.Block`.
    """

    kind: str
    divisor: float
    attention: Factory
    mlp: Factory
    norm: Factory
    residual: Factory

    @nn.compact
    def __call__(self, x: jax.Array, drop_path_rate: float | jax.Array, *, train: bool):
        names = {
            "mha": (self.attention, "MultiHeadDotProductAttention_0"),
            "ffn": (self.mlp, "MlpBlock_0"),
        }
        branch, name = chosen(self.kind, names, "part of `order`")
        i = list(names).index(self.kind)
        y = self.norm(name=f"LayerNorm_{i}")(x * self.divisor)
        y = branch(name=name)(y, train=train)
        return x + self.residual(name=f"residual_{i}")(y, drop_path_rate, train=train)


class OrderedEncoder(Encoder):
    """As `Encoder`, of blocks and halves of blocks.

    Attributes:
      order: 'tr', a block, or 'mha' or 'ffn', a `Branch`, for each of `num_layers`; empty for
        blocks.
      residual_divisor: As in `Damped`.
    """

    order: Sequence[str] = ()
    residual_divisor: float = 1.0

    def make_block(self, **fields: Any) -> Factory | list[Factory]:
        block: Any = super().make_block(**fields)
        if not self.order:
            return block
        branch = functools.partial(Branch, divisor=self.residual_divisor, **block.keywords)
        return [block if kind == "tr" else functools.partial(branch, kind) for kind in self.order]


class LVViT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    They are the class token's plus half of the maximum of the patches' over the patches. It shows
    both (`vit_jax.layers.head.HEADS`): [N, num_classes] and [N, T, num_classes].

    Attributes:
      num_classes: 0 returns the same of the features [N, D] that the heads would get.
      patch_size: In pixels: the side of a square, or (height, width); even, as the stem
        halves it.
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      residual_divisor: As in `Damped`.
      stem_features: Channels of the stem.
      head_dim: Width of a head; by default D / `num_heads`. No published model has another.
      order: As in `OrderedEncoder`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    residual_divisor: float = 1.0
    stem_features: int = 64
    head_dim: int | None = None
    order: Sequence[str] = ()
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, mix: jax.Array | None = None
    ) -> jax.Array:
        """`mix` [rows, columns] of booleans marks patches to take from another image (MixToken,
        ibid., section 3.3): image i of N shows those of image N - 1 - i there, and their logits are
        given where they came from.
        """
        stem = ConvStem((self.stem_features,) * 3, dtype=self.dtype, name="stem")
        x = stem(images, train=train)
        height, width = sides(self.patch_size)
        half = (height // 2, width // 2)
        x = embed_patches(x, self.hidden_size, half, dtype=self.dtype, name="embedding")
        x = exchange_tokens(map_tokens(x), mix)
        x = prepend_tokens(self, x, "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        block = functools.partial(
            vit_block,
            norm=LayerNorm5,
            residual=functools.partial(Damped, self.residual_divisor),
            attention=functools.partial(MultiHeadDotProductAttention, head_dim=self.head_dim),
            qkv_bias=False,
        )
        x = encoder_of(self, OrderedEncoder, block=block, norm=LayerNorm5)(x, train=train)
        return classify_tokens(self, x, self.num_classes, mix, dtype=self.dtype)

"""The plain text towers of LiT (Zhai et al. 2022, arXiv:2111.07991, section 5.3)."""

from vit_jax.families.family import (
    Architecture,
    Config,
    Family,
    Shape,
    Size,
    Weights,
    text_length,
)
from vit_jax.families.parts import always
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.shapes import text_transformer_shapes
from vit_jax.families.text import Text

_VOCABULARY = 16_000
SIZES = {
    "Ti": {"width": 192, "num_layers": 12, "mlp_dim": 768, "num_heads": 3},
    "S": {"width": 384, "num_layers": 12, "mlp_dim": 1536, "num_heads": 6},
}
SMALL = {"width": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 32, "vocab_size": 64}


def _architecture(size: str) -> Architecture:
    weights = Weights(Preprocess(), num_classes=0, layout="official", text=Text("sentencepiece"))
    return Architecture({**SIZES[size], "vocab_size": _VOCABULARY}, {"": weights})


def _shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape]:
    del image_size
    return dict(text_transformer_shapes(config, num_classes, text_length(config)))


FAMILIES = {
    "text_transformer": Family(
        title="text Transformer",
        paper="2111.07991",
        model="text_transformer:TextTransformer",
        computes="GELU in its tanh form, LayerNorm eps 1e-6",
        architectures={f"text_transformer_{size}": _architecture(size) for size in SIZES},
        layouts={},
        small=always(SMALL),
        inputs=("tokens",),
        shapes=_shapes,
        stem=lambda config: (),
        reference="official",
    )
}

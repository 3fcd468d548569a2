"""SimpleViT (Beyer et al. 2022, arXiv:2205.01580; widths of Dosovitskiy et al., Table 1).

Top-1 of S/16: the abstract, after 300 epochs. The evaluation of big_vision shrinks the image to 256
by averaging areas, which is closest to bilinear interpolation with antialiasing.
"""

from vit_jax.families.preprocess import Preprocess
from vit_jax.models.variants import SMALL, Family, Variant

_IMAGES = Preprocess(224, 0.875, resize="shortest", method="bilinear", antialias=True)


def _simple_vit(width: int, depth: int, heads: int, top1: float | None = None) -> Variant:
    config = {
        "patches": {"size": (16, 16)},
        "hidden_size": width,
        "transformer": {"num_layers": depth, "num_heads": heads, "mlp_dim": 4 * width},
    }
    return Variant(config, _IMAGES, top1)


FAMILIES = {
    "simple_vit": Family(
        small=SMALL,
        title="SimpleViT",
        paper="2205.01580",
        model="simple_vit:SimpleViT",
        tables="simple_vit",
        reference="big_vision",
        variants={
            "simple_vit_s_16": _simple_vit(384, 12, 6, 80.0),
            "simple_vit_b_16": _simple_vit(768, 12, 12),
            "simple_vit_l_16": _simple_vit(1024, 24, 16),
        },
    ),
}

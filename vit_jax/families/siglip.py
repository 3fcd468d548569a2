"""SigLIP and SigLIP 2 at a fixed size (arXiv:2303.15343, arXiv:2502.14786): image towers, and both.

Image towers have timm's names, models of two towers those of Google's repositories. What files call
the tensors stands in `siglip_layouts.py`.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.families import siglip_layouts as layouts
from vit_jax.families.family import Architecture, Config, Family, Shape, Shapes, Size, Weights
from vit_jax.families.hf import square
from vit_jax.families.parts import COMPUTES, imagenet, positions
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.shapes import POSITIONS, vit_shapes
from vit_jax.families.text import Text
from vit_jax.families.towers import two_towers

VISION = "siglip_vision"
HUB = "https://huggingface.co/google"
HALF = (0.5, 0.5, 0.5)
_LICENCE = "Apache-2.0"

# Width, layers, heads and width of the MLP of either tower (big_vision, models/vit.py).
SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
# Size and patch -> image size -> tags under which timm publishes the tower with its head.
_BOTH, _FIRST, _SECOND = ("webli", "v2_webli"), ("webli",), ("v2_webli",)
_TOWERS: dict[tuple[str, int], dict[int, tuple[str, ...]]] = {
    ("base", 16): {224: _BOTH, 256: (*_BOTH, "webli_i18n"), 384: _BOTH, 512: _BOTH},
    ("base", 32): {256: _SECOND},
    ("large", 16): {256: _BOTH, 384: _BOTH, 512: _SECOND},
    ("so400m", 14): {224: _BOTH, 378: _BOTH, 384: _FIRST},
    ("so400m", 16): {256: ("v2_webli", "webli_i18n"), 384: _SECOND, 512: _SECOND},
    ("giantopt", 16): {256: _SECOND, 384: _SECOND},
}
# PaliGemma's towers, which were trained on as averages.
_PALI = {
    224: ("pali_mix", "pali_pt", "pali2_3b_pt", "pali2_10b_pt"),
    448: ("pali_mix", "pali_pt", "pali2_3b_pt", "pali2_10b_pt"),
    896: ("pali_pt", "pali2_3b_pt", "pali2_10b_pt"),
}
# Averages that the original code has under a name of its own.
_ALIASES = {("base", 16): "ViT-B_16-gap-norep", ("base", 32): "ViT-B_32-gap-norep"}


def image_tower(size: str, patch: int, pool: str = "map") -> dict[str, Any]:
    """The constructor fields of an image tower."""
    width, depth, heads, mlp_dim = SIZES[size]
    return {
        "patches": {"size": (patch, patch)},
        "hidden_size": width,
        "transformer": {
            "num_layers": depth,
            "num_heads": heads,
            "mlp_dim": mlp_dim,
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
        },
        "classifier": pool,
    }


def text_tower(size: str, vocabulary: int) -> dict[str, Any]:
    """The constructor fields of a text tower."""
    width, depth, heads, mlp_dim = SIZES[size]
    sizes = {"width": width, "num_layers": depth, "num_heads": heads, "mlp_dim": mlp_dim}
    return {**sizes, "vocab_size": vocabulary}


def tower_name(size: str, patch: int, pixels: int, pool: str = "map") -> str:
    """What timm calls an image tower."""
    kind = "siglip" if pool == "map" else "siglip_gap"
    return f"vit_{size}_patch{patch}_{kind}_{pixels}"


def _towers() -> dict[str, Architecture]:
    found = {}
    for pool in ("map", "gap"):
        for (size, patch), images in _TOWERS.items():
            more = _PALI if (pool, size, patch) == ("gap", "so400m", 14) else {}
            alias = _ALIASES.get((size, patch)) if pool == "gap" else None
            for pixels in sorted(images.keys() | more.keys()):
                name = tower_name(size, patch, pixels, pool)
                tags = images.get(pixels, ()) + more.get(pixels, ())
                weights = {tag: _timm_weights(name, tag, pixels) for tag in tags}
                config = image_tower(size, patch, pool)
                found[name] = Architecture(config, weights, alias_of=alias)
    return found


def _timm_weights(name: str, tag: str, pixels: int) -> Weights:
    images = imagenet(pixels, 0.9, mean=HALF, std=HALF)
    return Weights(images, num_classes=0, source=f"timm/{name}.{tag}", licence=_LICENCE)


# --- both towers ----------------------------------------------------------------------------------

_ENGLISH, _MANY, _GEMMA = 32_000, 250_000, 256_000  # entries of the vocabularies
_FIRST_MODELS = {
    ("base", 16): (224, 256, 384, 512),
    ("large", 16): (256, 384),
    ("so400m", 14): (224, 384),
}
_SECOND_MODELS = {
    ("base", 32): (256,),
    ("base", 16): (224, 256, 384, 512),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 384),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}


def _model(
    name: str, size: str, patch: int, pixels: int, vocabulary: int, length: int = 64
) -> Architecture:
    """As it was published; `NAME.big_vision` is the same with the original code's images."""
    text_size = "so400m" if size == "giantopt" else size
    config = {
        "image": {
            "family": VISION,
            "model_name": tower_name(size, patch, pixels),
            **image_tower(size, patch),
        },
        "text_model": "text_transformer",
        "text": text_tower(text_size, vocabulary),
        "out_dim": (None, SIZES[size][0]),
        "temperature_init": 10.0,
        "bias_init": -10.0,
        "length": length,
    }
    second = name.startswith("siglip2")
    file = "tokenizer.model" if second else "spiece.model"
    text = Text("siglip2" if second else "siglip", f"{HUB}/{name}/resolve/main/{file}", length)
    method = "bilinear" if second else "bicubic"
    published = Weights(
        Preprocess(pixels, method=method, antialias=True),
        num_classes=0,
        source=f"hf://google/{name}",
        layout="hf",
        licence=_LICENCE,
        text=text,
    )
    official = Weights(
        Preprocess(pixels), num_classes=0, layout="big_vision", licence=_LICENCE, text=text
    )
    return Architecture(config, {"": published, "big_vision": official})


def _models() -> dict[str, Architecture]:
    found = {}
    for (size, patch), images in _FIRST_MODELS.items():
        for pixels in images:
            name = f"siglip-{size}-patch{patch}-{pixels}"
            length = 16 if (size, pixels) == ("so400m", 224) else 64
            found[name] = _model(name, size, patch, pixels, _ENGLISH, length)
    name = "siglip-base-patch16-256-multilingual"
    found[name] = _model(name, "base", 16, 256, _MANY)
    name = "siglip-so400m-patch16-256-i18n"
    found[name] = _model(name, "so400m", 16, 256, _MANY)
    for (size, patch), images in _SECOND_MODELS.items():
        for pixels in images:
            name = f"siglip2-{size.replace('giantopt', 'giant-opt')}-patch{patch}-{pixels}"
            found[name] = _model(name, size, patch, pixels, _GEMMA)
    return found


# --- image sizes ----------------------------------------------------------------------------------

_ARCHITECTURES = _towers()


def _patch(config: Config) -> Size:
    rows, columns = config["patches"]["size"]
    return rows, columns


_POSITIONS = positions(0, stride=_patch, name=POSITIONS)


def _image_size(config: Config, shapes: Shapes) -> Size | None:
    """Whole patches, or the published size where that has as many: of 384 pixels 14 × 27 count."""
    found = _POSITIONS["image_size"](config, shapes)
    known = _ARCHITECTURES.get(str(config.get("model_name")))
    if known is None:
        return found
    own, patch = known.default.preprocess.height_width, _patch(config)
    same = all(a // p == b // p for a, b, p in zip(own, found, patch, strict=True))
    return own if same else found


def _shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape]:
    (height, width), (rows, columns) = image_size, _patch(config)
    return dict(vit_shapes(config, num_classes, (height // rows) * (width // columns)))


def _small(config: Config) -> dict[str, Any]:
    del config
    return {
        "hidden_size": 32,
        "transformer": {"num_layers": 2, "num_heads": 2, "mlp_dim": 32},
    }


def _pixels(vision: Mapping[str, Any]) -> int:
    """The image size of transformers' entries."""
    return square(vision.get("image_size", 224))


FAMILIES = {
    VISION: Family(
        title="SigLIP image tower",
        paper="2303.15343",
        model="siglip:SigLIPVision",
        figures="timm and transformers",
        computes=COMPUTES,
        architectures=_ARCHITECTURES,
        layouts={
            "timm": layouts.timm(_ARCHITECTURES),
            "hf": layouts.HF_VISION,
            "big_vision": layouts.BIG_VISION_TOWER,
        },
        small=_small,
        resize_method="official",
        shapes=_shapes,
        **{**_POSITIONS, "image_size": _image_size},
    ),
    "siglip": Family(
        title="SigLIP",
        paper="2303.15343",
        model="siglip:SigLIP",
        figures="timm and transformers",
        computes=f"towers with {COMPUTES}, embeddings divided by their length + 1e-8",
        architectures=(_BOTH_TOWERS := _models()),
        layouts={
            "hf": layouts.hf_both("siglip", "SiglipModel", VISION, _BOTH_TOWERS, _pixels),
            "open_clip": layouts.open_clip_both(_BOTH_TOWERS),
            "big_vision": layouts.big_vision_both(POSITIONS),
        },
        resize_method="official",
        reference="hf",
        **two_towers(),
    ),
}

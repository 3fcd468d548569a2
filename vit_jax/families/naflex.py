"""SigLIP 2's models of variable size (NaFlex, arXiv:2502.14786, section 2.4.2).

An image tower takes images of any size, so that nothing is ever resized in its weights; the sizes
are those of `siglip.py`.
"""

from typing import Any

from vit_jax.families import naflex_layouts, siglip, siglip_layouts
from vit_jax.families.family import Architecture, Config, Family, Shape, Size, Weights, channels
from vit_jax.families.parts import COMPUTES, SMALL, always, imagenet
from vit_jax.families.parts import POSITIONS as POSITIONS_OF_ANY
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.shapes import POSITIONS, vit_shapes
from vit_jax.families.text import Text
from vit_jax.families.towers import two_towers

VISION = "naflex_vision"
_SIZES, _PATCH, _PIXELS = ("base", "so400m"), 16, 256
_LENGTH, _VOCABULARY = 64, 256_000
_PATCHES = 256  # of an image, as the published processors have it


def _image_tower(size: str) -> dict[str, Any]:
    width, depth, heads, mlp_dim = siglip.SIZES[size]
    sizes = {"hidden_size": width, "num_layers": depth, "num_heads": heads, "mlp_dim": mlp_dim}
    return {"patch_size": _PATCH, "position_grid": 16, **sizes}


def _tower(size: str) -> Architecture:
    images = imagenet(_PIXELS, 1.0, mean=siglip.HALF, std=siglip.HALF, method="bilinear")
    source = f"timm/{_tower_name(size)}.v2_webli"
    weights = Weights(images, num_classes=0, source=source, licence="Apache-2.0")
    return Architecture(_image_tower(size), {"v2_webli": weights})


def _tower_name(size: str) -> str:
    return f"naflexvit_{size}_patch16_siglip"


def _model_name(size: str) -> str:
    return f"siglip2-{size}-patch16-naflex"


def _model(size: str) -> Architecture:
    config = {
        "image": {"family": VISION, "model_name": _tower_name(size), **_image_tower(size)},
        "text_model": "text_transformer",
        "text": siglip.text_tower(size, _VOCABULARY),
        "out_dim": (None, siglip.SIZES[size][0]),
        "temperature_init": 10.0,
        "bias_init": -10.0,
        "length": _LENGTH,
    }
    name = _model_name(size)
    weights = Weights(
        Preprocess(_PIXELS, antialias=True),
        num_classes=0,
        source=f"hf://google/{name}",
        layout="hf",
        licence="Apache-2.0",
        text=Text("siglip2", f"{siglip.HUB}/{name}/resolve/main/tokenizer.model", _LENGTH),
    )
    return Architecture(config, {"": weights})


def _shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape]:
    """Those of a Vision Transformer, but for what reads the patches and their positions."""
    del image_size
    width, patch, grid = (config[name] for name in ("hidden_size", "patch_size", "position_grid"))
    as_vit = {
        "patches": {"size": (patch, patch)},
        "hidden_size": width,
        "transformer": {name: config[name] for name in ("num_layers", "num_heads", "mlp_dim")},
        "classifier": "map",
    }
    found = dict(vit_shapes(as_vit, num_classes, 1))
    del found[POSITIONS]
    return found | {
        "embedding/kernel": (patch, patch, channels(config), width),
        POSITIONS_OF_ANY: (grid, grid, width),
    }


_TOWERS = {_tower_name(size): _tower(size) for size in _SIZES}
_MODELS = {_model_name(size): _model(size) for size in _SIZES}

FAMILIES = {
    VISION: Family(
        title="SigLIP 2 NaFlex image tower",
        paper="2502.14786",
        model="naflex:NaFlexVision",
        figures="timm and transformers",
        computes=COMPUTES,
        architectures=_TOWERS,
        layouts={
            "timm": naflex_layouts.TIMM,
            "hf": naflex_layouts.HUGGING_FACE,
            "big_vision": naflex_layouts.big_vision(lambda config: _shapes(config, 1, (1, 1))),
        },
        small=always(SMALL),
        shapes=_shapes,
        flexible=lambda config: (config["patch_size"], _PATCHES),
    ),
    "naflex": Family(
        title="SigLIP 2 NaFlex",
        paper="2502.14786",
        model="naflex:SigLIPNaFlex",
        figures="timm and transformers",
        computes=f"towers with {COMPUTES}, embeddings divided by their length + 1e-8",
        architectures=_MODELS,
        layouts={
            "hf": siglip_layouts.hf_both(
                "siglip2", "Siglip2Model", VISION, _MODELS, lambda vision: _PIXELS
            ),
            "open_clip": siglip_layouts.open_clip_both(_MODELS),
            "big_vision": naflex_layouts.flat(siglip_layouts.big_vision_both(POSITIONS_OF_ANY)),
        },
        reference="hf",
        flexible=lambda config: (config["image"]["patch_size"], _PATCHES),
        **two_towers(),
    ),
}

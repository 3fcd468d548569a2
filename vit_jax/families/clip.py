"""CLIP (Radford et al. 2021, arXiv:2103.00020): image towers, text towers, and both in one space.

OpenAI's, OpenCLIP's, MetaCLIP's and DFN's. Image towers have timm's names, models of two towers
those of the hub's repositories; what files call the tensors stands in `clip_layouts.py`. Which
activation a model has no tensor tells: it is part of the name.
"""

from typing import Any

from vit_jax.families import clip_layouts as layouts
from vit_jax.families.family import Architecture, Config, Family, Shape, Size, Weights
from vit_jax.families.parts import (
    CLIP_MEAN,
    CLIP_STD,
    SMALL,
    always,
    imagenet,
    patch_size,
    positions,
)
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.shapes import clip_text_shapes, clip_vision_shapes
from vit_jax.families.text import Text
from vit_jax.families.towers import two_towers

VISION, BOTH, TEXTS = "clip_vision", "clip", "clip_text"
QUICK, ERF = "quick_gelu", "gelu"
# The activations, and whose weights are made for each.
ACTIVATIONS = {
    QUICK: "x σ(1.702 x), of OpenAI, MetaCLIP, DFN but for L/14 39B, and LAION-400M's B/32",
    ERF: "the erf form of GELU, of LAION-2B, DataComp, DFN's L/14 39B, and LAION-400M's others",
}
ASKED = "its activation, which is no tensor: " + "; ".join(
    f"{name!r} is {what}" for name, what in ACTIVATIONS.items()
)
_LENGTH, _VOCABULARY = 77, 49_408

# Width, layers and heads of the image tower and of the text tower, and the width of the space they
# share. An MLP is four times as wide as a token but in the image towers of g and bigG.
_SIZES = {
    "base": ((768, 12, 12), (512, 12, 8), 512),
    "large": ((1024, 24, 16), (768, 12, 12), 768),
    "huge": ((1280, 32, 16), (1024, 24, 16), 1024),
    "giant": ((1408, 40, 16), (1024, 24, 16), 1024),
    "gigantic": ((1664, 48, 16), (1280, 32, 20), 1280),
}
_WIDER = {"giant": 6144, "gigantic": 8192}


def _tower(sizes: tuple[int, int, int], activation: str) -> dict[str, Any]:
    width, depth, heads = sizes
    return {
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": 4 * width,
        "activation": activation,
    }


def image_tower(size: str, patch: int, activation: str) -> dict[str, Any]:
    """The constructor fields of an image tower."""
    fields = {"patch_size": patch, **_tower(_SIZES[size][0], activation)}
    return {**fields, "mlp_dim": _WIDER.get(size, fields["mlp_dim"])}


def text_tower(size: str, activation: str) -> dict[str, Any]:
    """The constructor fields of a text tower."""
    fields = _tower(_SIZES[size][1], activation)
    return {**fields, "vocab_size": _VOCABULARY, "max_length": _LENGTH}


# --- image towers ---------------------------------------------------------------------------------

_HALF = (0.5, 0.5, 0.5)
_MIT, _META, _APPLE = "MIT", "CC-BY-NC-4.0", "Apple-ASCL"
_LICENCES = {"metaclip": _META, "dfn": _APPLE}  # by the beginning of a tag; others are MIT's
# Activation -> (size, patch) -> image size -> tags of timm's weights. The activation is what
# open_clip 3.3.0 says of each (`quick_gelu` in its table of weights); timm says it of most.
_TOWERS: dict[str, dict[tuple[str, int], dict[int, tuple[str, ...]]]] = {
    QUICK: {
        ("base", 32): {224: ("openai", "laion400m_e32", "metaclip_400m", "metaclip_2pt5b")},
        ("base", 16): {224: ("openai", "dfn2b", "metaclip_400m", "metaclip_2pt5b")},
        ("large", 14): {
            224: ("openai", "dfn2b", "metaclip_400m", "metaclip_2pt5b"),
            336: ("openai",),
        },
        ("huge", 14): {224: ("dfn5b", "metaclip_2pt5b"), 378: ("dfn5b",)},
        ("gigantic", 14): {224: ("metaclip_2pt5b",)},
    },
    ERF: {
        ("base", 32): {224: ("laion2b", "datacompxl"), 256: ("datacompxl",)},
        ("base", 16): {224: ("laion2b", "laion400m_e32", "datacompxl")},
        ("large", 14): {224: ("laion2b", "laion400m_e32", "datacompxl", "dfn2b_s39b")},
        ("huge", 14): {224: ("laion2b", "metaclip_altogether")},
        ("giant", 14): {224: ("laion2b",)},
        ("gigantic", 14): {224: ("laion2b",)},
    },
}
# Weights that timm crops to 0.9, its default, and no others of CLIP's.
_CROPPED = {("openai", 32), ("openai", 16), ("laion400m_e32", 32), ("laion2b", 32)}


def tower_name(size: str, patch: int, pixels: int, activation: str, tag: str = "") -> str:
    """What timm calls an image tower, or weights of it."""
    quick = "quickgelu_" if activation == QUICK else ""
    return f"vit_{size}_patch{patch}_clip_{quick}{pixels}" + (f".{tag}" if tag else "")


def _licence(tag: str) -> str:
    return next((known for start, known in _LICENCES.items() if tag.startswith(start)), _MIT)


def _images(size: str, pixels: int, tag: str, crop: float = 1.0) -> Preprocess:
    """OpenAI's statistics; LAION-2B's L/14 was trained with others."""
    if (size, tag) == ("large", "laion2b"):
        return imagenet(pixels, crop, mean=_HALF, std=_HALF)
    return imagenet(pixels, crop, mean=CLIP_MEAN, std=CLIP_STD)


def _towers() -> dict[str, Architecture]:
    found = {}
    for activation, sizes in _TOWERS.items():
        for (size, patch), images in sizes.items():
            for pixels, tags in images.items():
                # timm's repositories are called by the name of the other activation, even so.
                source = tower_name(size, patch, pixels, ERF)
                weights = {
                    tag: Weights(
                        _images(size, pixels, tag, 0.9 if (tag, patch) in _CROPPED else 1.0),
                        num_classes=_SIZES[size][2],
                        source=f"timm/{source}.{tag}",
                        licence=_licence(tag),
                    )
                    for tag in tags
                }
                config = image_tower(size, patch, activation)
                found[tower_name(size, patch, pixels, activation)] = Architecture(config, weights)
    return found


# --- text towers ----------------------------------------------------------------------------------

_HUB = "https://huggingface.co"
_VOCABULARY_OF = f"{_HUB}/openai/clip-vit-base-patch32/resolve/main/tokenizer.json"
_TEXT = Text("clip", _VOCABULARY_OF, _LENGTH)


def _texts() -> dict[str, Architecture]:
    found = {}
    for activation, end in ((QUICK, "_quickgelu"), (ERF, "")):
        for size in ("base", "large", "huge", "gigantic"):
            weights = Weights(
                Preprocess(), num_classes=_SIZES[size][2], layout="hf", licence=_MIT, text=_TEXT
            )
            config = text_tower(size, activation)
            found[f"clip_text_{size}{end}"] = Architecture(config, {"": weights}, timm_name="")
    return found


# --- both towers ----------------------------------------------------------------------------------

# The repository of the hub that a model is called by -> size, patch, image size, activation, and
# the tag and the repository of what was published; those of 'apple' have OpenCLIP's names.
_Published = tuple[str, int, int, str, dict[str, str]]
_MODELS: dict[str, _Published] = {
    "clip-vit-base-patch32": (
        "base", 32, 224, QUICK,
        {
            "openai": "openai/clip-vit-base-patch32",
            "metaclip_400m": "facebook/metaclip-b32-400m",
            "metaclip_2pt5b": "facebook/metaclip-b32-fullcc2.5b",
        },
    ),
    "clip-vit-base-patch16": (
        "base", 16, 224, QUICK,
        {
            "openai": "openai/clip-vit-base-patch16",
            "dfn2b": "apple/DFN2B-CLIP-ViT-B-16",
            "metaclip_400m": "facebook/metaclip-b16-400m",
            "metaclip_2pt5b": "facebook/metaclip-b16-fullcc2.5b",
        },
    ),
    "clip-vit-large-patch14": (
        "large", 14, 224, QUICK,
        {
            "openai": "openai/clip-vit-large-patch14",
            "dfn2b": "apple/DFN2B-CLIP-ViT-L-14",
            "metaclip_400m": "facebook/metaclip-l14-400m",
            "metaclip_2pt5b": "facebook/metaclip-l14-fullcc2.5b",
        },
    ),
    "clip-vit-large-patch14-336": (
        "large", 14, 336, QUICK, {"openai": "openai/clip-vit-large-patch14-336"},
    ),
    "DFN5B-CLIP-ViT-H-14": (
        "huge", 14, 224, QUICK,
        {
            "dfn5b": "apple/DFN5B-CLIP-ViT-H-14",
            "metaclip_2pt5b": "facebook/metaclip-h14-fullcc2.5b",
        },
    ),
    "DFN5B-CLIP-ViT-H-14-378": (
        "huge", 14, 378, QUICK, {"dfn5b": "apple/DFN5B-CLIP-ViT-H-14-378"},
    ),
    "CLIP-ViT-B-32-laion2B-s34B-b79K": (
        "base", 32, 224, ERF,
        {
            "laion2b": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
            "datacompxl": "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        },
    ),
    "CLIP-ViT-B-32-256x256-DataComp-s34B-b86K": (
        "base", 32, 256, ERF, {"datacompxl": "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"},
    ),
    "CLIP-ViT-B-16-laion2B-s34B-b88K": (
        "base", 16, 224, ERF,
        {
            "laion2b": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
            "datacompxl": "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
        },
    ),
    "CLIP-ViT-L-14-laion2B-s32B-b82K": (
        "large", 14, 224, ERF,
        {
            "laion2b": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
            "datacompxl": "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
        },
    ),
    "CLIP-ViT-H-14-laion2B-s32B-b79K": (
        "huge", 14, 224, ERF, {"laion2b": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"},
    ),
    "CLIP-ViT-g-14-laion2B-s12B-b42K": (
        "giant", 14, 224, ERF,
        {
            "laion2b": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
            "laion2b_s34b": "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
        },
    ),
    "CLIP-ViT-bigG-14-laion2B-39B-b160k": (
        "gigantic", 14, 224, ERF, {"laion2b": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"},
    ),
}  # fmt: skip


def _model(size: str, patch: int, pixels: int, activation: str, published: dict[str, str]):
    image = {
        "family": VISION,
        "model_name": tower_name(size, patch, pixels, activation),
        **image_tower(size, patch, activation),
    }
    config = {
        "image": image,
        "text_model": TEXTS,
        "text": text_tower(size, activation),
        "out_dim": _SIZES[size][2],
    }
    weights = {
        tag: Weights(
            _images(size, pixels, tag),
            num_classes=0,
            source=f"hf://{repository}",
            layout="torch" if repository.startswith("apple/") else "hf",
            licence=_licence(tag),
            text=_TEXT,
        )
        for tag, repository in published.items()
    }
    return Architecture(config, weights, timm_name="")


def _computes(config: Config) -> str:
    tower = config.get("image", config)
    return f"activation {tower['activation']!r}, LayerNorm eps 1e-5"


def _computes_both(config: Config) -> str:
    return f"{_computes(config)}, embeddings divided by their length"


def _vision_shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape]:
    (height, width), (rows, columns) = image_size, patch_size(config)
    patches = (height // rows) * (width // columns)
    return dict(clip_vision_shapes(config, num_classes, patches))


def _text_shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape]:
    del image_size
    return dict(clip_text_shapes(config, num_classes))


_SMALL_TEXT = {**SMALL, "vocab_size": 64, "max_length": 16}
_TWO_TOWERS = {**two_towers(), "text_length": lambda config: config["text"]["max_length"]}

FAMILIES = {
    VISION: Family(
        title="CLIP image tower",
        paper="2103.00020",
        model="clip:CLIPVision",
        computes=_computes,
        asks=ASKED,
        architectures=_towers(),
        layouts={
            "timm": layouts.TIMM,
            "hf": layouts.HF_VISION,
            "torch": layouts.TORCH_VISION,
        },
        small=always(SMALL),
        shapes=_vision_shapes,
        **positions(prefix=1),
    ),
    TEXTS: Family(
        title="CLIP text tower",
        paper="2103.00020",
        model="clip:CLIPText",
        computes=_computes,
        asks=ASKED,
        architectures=_texts(),
        layouts={"hf": layouts.HF_TEXT, "torch": layouts.TORCH_TEXT},
        small=always(_SMALL_TEXT),
        inputs=("tokens",),
        shapes=_text_shapes,
        text_length=lambda config: config["max_length"],
        stem=lambda config: (),
        reference="hf",
    ),
    BOTH: Family(
        title="CLIP",
        paper="2103.00020",
        model="clip:CLIP",
        computes=_computes_both,
        asks=ASKED,
        architectures={name: _model(*published) for name, published in _MODELS.items()},
        layouts={"hf": layouts.HF_BOTH, "torch": layouts.TORCH_BOTH},
        resize_method="timm",
        reference="hf",
        **_TWO_TOWERS,
    ),
}

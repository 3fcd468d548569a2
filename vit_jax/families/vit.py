"""The original code's Vision Transformers and hybrids (Dosovitskiy et al. 2021, arXiv:2010.11929).

Their sizes stand where the original's users look for them, in `configs/models.py`; here is which
of them are registered, and how a file is recognised. What files call their tensors stands in
`vit_flax.py` and `vit_torch.py`. A file holds the number of attention heads in the shapes of our
own layouts only.
"""

import itertools
import math
from typing import Any

from vit_jax.configs import models
from vit_jax.families.family import (
    Architecture,
    Config,
    Edits,
    Family,
    Shape,
    Shapes,
    Size,
    Weights,
)
from vit_jax.families.parts import COMPUTES
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.published import published_of
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import count, counts
from vit_jax.families.shapes import POSITIONS, has_class_token, is_plain, vit_shapes
from vit_jax.families.vit_flax import BIG_VISION, OFFICIAL
from vit_jax.families.vit_torch import HUGGING_FACE, TIMM

# timm's name without the resolution -> official name.
_TIMM_NAMES = {
    "vit_tiny_patch16": "ViT-Ti_16",
    "vit_small_patch32": "ViT-S_32",
    "vit_small_patch16": "ViT-S_16",
    "vit_base_patch32": "ViT-B_32",
    "vit_base_patch16": "ViT-B_16",
    "vit_base_patch8": "ViT-B_8",
    "vit_large_patch32": "ViT-L_32",
    "vit_large_patch16": "ViT-L_16",
    "vit_huge_patch14": "ViT-H_14",
    "vit_giant_patch14": "ViT-g_14",
    "vit_tiny_r_s16_p8": "R+ViT-Ti_16",
    "vit_small_r26_s32": "R26+ViT-S_32",
    "vit_base_r26_s32": "R26+ViT-B_32",
    "vit_base_r50_s16": "R50+ViT-B_16",
    "vit_large_r50_s32": "R50+ViT-L_32",
}
_ONLY_AT_224 = ("vit_base_patch8", "vit_huge_patch14", "vit_giant_patch14", "vit_base_r26_s32")
_GAP = "-gap-norep"  # the mean over tokens, which is an argument in timm and not a name


def _architectures() -> dict[str, Architecture]:
    """The original's names with the official preprocessing, then timm's with timm's."""
    configs = {n: c.to_dict() for n, c in models.MODEL_CONFIGS.items() if "hidden_size" in c}
    configs["ViT-g_14"] = models.get_g14_config().to_dict()
    timm_names = {official: f"{name}_224" for name, official in _TIMM_NAMES.items()}
    found = {
        name: Architecture(
            config,
            {"": Weights(Preprocess(size=224), layout="official")} | published_of(name),
            timm_name=timm_names.get(name.removesuffix(_GAP), ""),
        )
        for name, config in configs.items()
    }
    for name, official in _TIMM_NAMES.items():
        for size in (224,) if name in _ONLY_AT_224 else (224, 384):
            images = timm_preprocess(size, 0.9 if size == 224 else 1.0)
            found[f"{name}_{size}"] = Architecture(
                configs[official], {"": Weights(images)}, alias_of=official
            )
    return found


def timm_preprocess(size: int, crop: float) -> Preprocess:
    """How timm prepares images for the official weights, by its default configurations."""
    return Preprocess(size, crop, resize="shortest", method="bicubic", antialias=True)


def _stride(config: Config) -> Size:
    """Pixels a patch: the ResNet's root halves twice, each stage after the first once more."""
    resnet = config.get("resnet")
    halvings = 0 if resnet is None else max(len(resnet["num_layers"]), 1) + 1
    height, width = config["patches"]["size"]
    return height * 2**halvings, width * 2**halvings


def _stem(config: Config) -> tuple[str, ...]:
    return ("embedding/kernel" if config.get("resnet") is None else "conv_root/kernel",)


def _grid_of_positions(config: Config, shapes: Shapes) -> tuple[int, ...] | None:
    """(rows, columns) of the patches that positions of the paper's ablation are for.

    Or their number alone, where tokens have positions one by one; None where nothing tells it.
    """
    for name, shape in shapes.items():
        match name.rsplit("/", 1)[-1]:
            case "row_offsets":
                others = shapes[name.removesuffix("row_offsets") + "column_offsets"]
                return (shape[0] + 1) // 2, (others[0] + 1) // 2
            case "rows":
                return shape[0], shapes[name.removesuffix("rows") + "columns"][0]
            case "pos_embedding":
                return (shape[1] - has_class_token(config),)
    return None


def _num_patches(config: Config, shapes: Shapes) -> int:
    if config.get("transformer") is None:
        return 0
    if not is_plain(config):
        return math.prod(_grid_of_positions(config, shapes) or (0,))
    return shapes[POSITIONS][1] - has_class_token(config)


def _image_size(config: Config, shapes: Shapes) -> Size | None:
    if config.get("transformer") is None:
        return None
    grid = () if is_plain(config) else _grid_of_positions(config, shapes)
    if grid is None:
        return None
    rows, columns = grid if len(grid) == 2 else square(_num_patches(config, shapes), "the weights'")
    height, width = _stride(config)
    return rows * height, columns * width


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    if config.get("transformer") is None or not is_plain(config):
        return {}
    height, width = _stride(config)
    before, after = ((size[0] // height, size[1] // width) for size in (old, new))
    prefix = int(has_class_token(config))
    return {POSITIONS: lambda x: resize_posembed(x, before, after, prefix, method)}


def _shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape] | None:
    if not is_plain(config):
        return None
    height, width = _stride(config)
    patches = (image_size[0] // height) * (image_size[1] // width)
    return dict(vit_shapes(config, num_classes, patches))


def _small(config: Config) -> dict[str, Any]:
    small: dict[str, Any] = {"hidden_size": 32}
    if config.get("transformer") is not None:
        small["transformer"] = {"num_layers": 2, "num_heads": 2, "mlp_dim": 32}
    if config.get("resnet") is not None:
        # Group normalisation wants 32 channels.
        stages = len(config["resnet"]["num_layers"])
        small["resnet"] = {"num_layers": (1,) * stages, "width_factor": 0.5}
    return small


# --- recognition ----------------------------------------------------------------------------------


def _infer(shapes: Shapes) -> dict[str, Any]:
    rows, columns, _, width = shapes["embedding/kernel"]
    config: dict[str, Any] = {
        "patches": {"size": (rows, columns)},
        "hidden_size": width,
        "transformer": None,
        "classifier": "token" if "cls" in shapes else "gap",
        "representation_size": shapes.get("pre_logits/bias", (None,))[0],
    }
    if "MAPHead_0/probe" in shapes:
        config["classifier"] = "map"
    if depth := count(shapes, r"Transformer/encoderblock_(\d+)"):
        block = "Transformer/encoderblock_0"
        config["transformer"] = {
            "num_layers": depth,
            "num_heads": shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][1],
            "mlp_dim": shapes[f"{block}/MlpBlock_0/Dense_0/kernel"][1],
        }
    if "conv_root/kernel" in shapes:
        factor = shapes["conv_root/kernel"][3] / 64
        stages = counts(shapes, r"block(\d+)/unit(\d+)", first=1)
        config["resnet"] = {
            "num_layers": stages,
            "width_factor": int(factor) if factor == int(factor) else factor,
        }
    return config


def _fit(wanted: Config, found: Config) -> dict[str, Any] | None:
    """Representation before the head: the file's. What tensors do not tell: as it is wanted."""
    heads = (found.get("transformer") or {}).get("num_heads")
    if _sizes(wanted, heads is not None) != _sizes(found, heads is not None):
        return None
    if heads is None and found["transformer"] is not None:
        given = wanted["transformer"]["num_heads"]
        if not given or found["hidden_size"] % given:
            return None
    return {**wanted, "representation_size": found["representation_size"]}


def _sizes(config: Config, heads: bool) -> tuple[Any, ...]:
    """What tells models apart; the representation before the head and the image do not."""
    transformer, resnet = config.get("transformer"), config.get("resnet")
    if transformer is not None:
        depth, width = transformer["num_layers"], transformer["mlp_dim"]
        transformer = (depth, width, transformer["num_heads"] if heads else None)
    return (
        tuple(config["patches"]["size"]),
        config["hidden_size"],
        transformer,
        (has_class_token(config), config["classifier"] == "map"),
        None if resnet is None else (tuple(resnet["num_layers"]), resnet["width_factor"]),
    )


def _leaves_open(config: Config) -> tuple[str, ...]:
    if config["classifier"] != "gap":
        return ()
    return (
        "without a class token, tokens may be averaged ('gap') or kept ('unpooled'), or the first "
        "may be read ('first')",
    )


def _forms() -> tuple[dict[str, Any], ...]:
    """Models that nobody registered, one for each set of names that a file may have."""
    resnets = (None, (), (1, 1))
    representations = (None, 1)
    found = []
    for classifier, resnet, representation in itertools.product(
        ("token", "gap", "map"), resnets, representations
    ):
        config = {
            "patches": {"size": (1, 1)},
            "hidden_size": 1,
            "transformer": {"num_layers": 1, "num_heads": 1, "mlp_dim": 1},
            "classifier": classifier,
            "representation_size": representation,
        }
        if resnet is not None:
            config["resnet"] = {"num_layers": resnet, "width_factor": 1}
        found.append(config)
        if classifier == "gap":
            found.append({**config, "transformer": None})
    return tuple(found)


FAMILIES = {
    "vit": Family(
        title="ViT",
        paper="2010.11929",
        model="vit:VisionTransformer",
        computes=COMPUTES,
        architectures=_architectures(),
        layouts={
            "timm": TIMM,
            "hf": HUGGING_FACE,
            "official": OFFICIAL,
            "big_vision": BIG_VISION,
        },
        small=_small,
        image_size=_image_size,
        num_patches=_num_patches,
        stride=_stride,
        stem=_stem,
        resize=_resize,
        resize_method="official",
        leaves_open=_leaves_open,
        shapes=_shapes,
        infer=_infer,
        fit=_fit,
        forms=_forms(),
    )
}

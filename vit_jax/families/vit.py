"""The original code's Vision Transformers and hybrids (Dosovitskiy et al. 2021, arXiv:2010.11929).

Their sizes stand where the original's users look for them, in `configs/models.py`; here is what
files call their tensors, and how a file is recognised. A file holds the number of attention heads
in the shapes of our own layouts only.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax.configs import models
from vit_jax.errors import UserError
from vit_jax.families import hf, released
from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    Edit,
    Edits,
    Family,
    HuggingFace,
    Layout,
    Pairs,
    Shape,
    Shapes,
    Size,
    Timm,
    Weights,
)
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ENCODER_BLOCK,
    HEADS,
    KERNEL,
    MLP,
    NORM,
    OUT,
    merged,
    mlp_ratio,
)
from vit_jax.families.parts import POSITIONS as _POSITIONS
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.published import published_of
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import Table, rule, under
from vit_jax.families.shapes import vit_shapes
from vit_jax.layers.sincos import sincos2d

POSITIONS = f"Transformer/{_POSITIONS}"
GELU = Difference("GELU", "tanh form", "erf form")
COMPUTES = "GELU in its tanh form, LayerNorm eps 1e-6"
TANH = "gelu_tanh"  # what timm calls the activation

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


def has_class_token(config: Config) -> bool:
    """Whether the model has a class token, which also has a position."""
    return config["classifier"] in ("token", "token_unpooled")


def _stride(config: Config) -> Size:
    """Pixels a patch: the ResNet's root halves twice, each stage after the first once more."""
    resnet = config.get("resnet")
    halvings = 0 if resnet is None else max(len(resnet["num_layers"]), 1) + 1
    height, width = config["patches"]["size"]
    return height * 2**halvings, width * 2**halvings


def _stem(config: Config) -> tuple[str, ...]:
    return ("embedding/kernel" if config.get("resnet") is None else "conv_root/kernel",)


def _num_patches(config: Config, shapes: Shapes) -> int:
    if config.get("transformer") is None:
        return 0
    return shapes[POSITIONS][1] - has_class_token(config)


def _image_size(config: Config, shapes: Shapes) -> Size | None:
    if config.get("transformer") is None:
        return None
    rows, columns = square(_num_patches(config, shapes), "the weights'")
    height, width = _stride(config)
    return rows * height, columns * width


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    if config.get("transformer") is None:
        return {}
    height, width = _stride(config)
    before, after = ((size[0] // height, size[1] // width) for size in (old, new))
    prefix = int(has_class_token(config))
    return {POSITIONS: lambda x: resize_posembed(x, before, after, prefix, method)}


def _shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape]:
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
    if depth := _count(shapes, r"Transformer/encoderblock_(\d+)"):
        block = "Transformer/encoderblock_0"
        config["transformer"] = {
            "num_layers": depth,
            "num_heads": shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][1],
            "mlp_dim": shapes[f"{block}/MlpBlock_0/Dense_0/kernel"][1],
        }
    if "conv_root/kernel" in shapes:
        factor = shapes["conv_root/kernel"][3] / 64
        stages = _counts(shapes, r"block(\d+)/unit(\d+)", first=1)
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
    return ("without a class token, tokens may be averaged ('gap') or kept ('unpooled')",)


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


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the pattern's group takes."""
    return len({m[1] for n in names if (m := re.match(pattern, n))})


def _counts(names: Iterable[str], pattern: str, first: int = 0) -> tuple[int, ...]:
    """For each number of the pattern's first group, how many its second takes."""
    pairs = {(int(m[1]), m[2]) for n in names if (m := re.match(pattern, n))}
    stages = {i for i, _ in pairs}
    return tuple(sum(i == j for i, _ in pairs) for j in range(first, first + len(stages)))


# --- official -------------------------------------------------------------------------------------


def our_names(config: Config) -> list[str]:
    """Names of all parameters of the model with a head."""
    return list(dict(vit_shapes(config, 1, 1)))


def _official(config: Config) -> Table:
    if config["classifier"] == "map":
        raise UserError(
            "the official models have no attention-pooling head; use big_vision or timm"
        )
    return released.writing(our_names(config))


# --- big_vision -----------------------------------------------------------------------------------

# The position embedding lies beside the encoder, as older files had it inside, and the
# attention-pooling head of early ViT-G files lies at the top. Current files hold no position for
# the class token, which is folded into `cls`.
_OLD_POSITIONS = ("pos_embedding", "Transformer/pos_embedding")
_INLINED_HEAD = ("probe", "MlpBlock_0", "MultiHeadDotProductAttention_0", "LayerNorm_0")


def _big_vision(config: Config) -> Table:
    if config.get("resnet") is not None:
        raise UserError("big_vision has no hybrids of ResNet and Transformer")
    return [
        row
        for name in our_names(config)
        for row in rule("params/" + ("pos_embedding" if name == POSITIONS else name), name)
    ]


def _read_big_vision(shapes: Shapes) -> Table:
    """Table from a file's names, of any age, to linen names."""
    return [r._replace(ours=(_from_big_vision(r.ours[0]),)) for r in released.reading(shapes)]


def _completes_big_vision(shapes: Shapes) -> bool:
    """Whether positions are there, or can be computed for the width of the patches' kernel."""
    kernel = shapes.get("embedding/kernel", ())
    if len(kernel) != 4:
        return False
    if not lacks_positions(shapes):
        return any(len(shapes.get(n, ())) == 3 for n in (*_OLD_POSITIONS, POSITIONS))
    return kernel[3] % 4 == 0 and kernel[3] >= 8


def _from_big_vision(name: str) -> str:
    if name in _OLD_POSITIONS:
        return POSITIONS
    return f"MAPHead_0/{name}" if name.split("/")[0] in _INLINED_HEAD else name


def lacks_positions(names: Iterable[str]) -> bool:
    """Whether these are of a big_vision model that computes its position embeddings."""
    names = list(names)
    if "embedding/kernel" not in names or any("pos_embedding" in n for n in names):
        return False
    return any(n.startswith("Transformer/") for n in names)


def _complete_big_vision(shapes: Shapes, image_size: Size) -> Edit | None:
    """Adds what the file leaves out: the class token's position, or all positions."""
    if POSITIONS not in shapes:
        rows_px, columns_px, _, width = shapes["embedding/kernel"]
        grid = image_size[0] // rows_px, image_size[1] // columns_px

        def computed() -> np.ndarray:
            table = sincos2d(grid, width)
            return add_class_position(table) if "cls" in shapes else table

        step = f"sincos2d position embeddings computed for a grid of {grid[0]} × {grid[1]}"
        return Edit(step, added={POSITIONS: computed})
    if "cls" not in shapes or _has_class_position(shapes[POSITIONS][1]):
        return None
    step = "position 0 of the class token added (it is folded into `cls`)"
    return Edit(step, changed={POSITIONS: add_class_position})


def _has_class_position(num_tokens: int) -> bool:
    """Whether so many positions are a square grid's and a class token's: big_vision's own test."""
    return math.isqrt(num_tokens) ** 2 + 1 == num_tokens


def add_class_position(posemb: np.ndarray) -> np.ndarray:
    """[1, N, D] -> [1, 1 + N, D]: a zero for a class token that has no position."""
    return np.concatenate([np.zeros_like(posemb[:, :1]), posemb], axis=1)


def _fold_class_position(
    config: Config, tensors: Mapping[str, np.ndarray], image_size: Size | None
) -> Edit | None:
    """Current big_vision adds no position to the class token."""
    if not has_class_token(config):
        return None
    position = tensors[POSITIONS][:, :1]
    if position.any() and image_size is not None and image_size[0] == image_size[1]:
        return Edit(
            "the class token keeps its own position, which big_vision folds into `cls` on loading"
        )
    if position.any():
        step = "the class token's position folded into `cls`"
    else:
        step = "the class token's position, zero, left out"
        position = None  # adding it would turn -0.0 into 0.0

    def fold(cls: np.ndarray) -> np.ndarray:
        return cls if position is None else cls + position

    return Edit(step, changed={POSITIONS: lambda p: p[:, 1:], "cls": fold})


# --- timm -----------------------------------------------------------------------------------------

_MAP_HEAD = (
    rule("latent", "probe")
    + under("q", "MultiHeadDotProductAttention_0/query", HEADS)
    + under("kv", "MultiHeadDotProductAttention_0", merged(("key", "value")))
    + under("proj", "MultiHeadDotProductAttention_0/out", OUT)
    + under("norm", "LayerNorm_0", NORM)
    + under("mlp", "MlpBlock_0", MLP)
)
_RESIDUAL_UNIT = [
    row
    for k in (1, 2, 3)
    for row in under(f"conv{k}", f"conv{k}", KERNEL) + under(f"norm{k}", f"gn{k}", NORM)
]
_PROJECTION = under("downsample.conv", "conv_proj", KERNEL) + under(
    "downsample.norm", "gn_proj", NORM
)
# ResNet stages -> the model of timm that has them.
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


def _timm(config: Config) -> Table:
    """Checked against timm 1.0.31."""
    if config.get("representation_size") is not None:
        raise UserError(
            "timm has no `pre_logits` layer; drop it (`drop_pre_logits`, which drops the head that "
            "reads it too) or keep the official format"
        )
    if config.get("transformer") is None:
        raise UserError("timm has no Vision Transformer without an encoder")
    rows = rule("pos_embed", POSITIONS)
    if has_class_token(config):
        rows += rule("cls_token", "cls")
    if config.get("resnet") is not None:
        rows += under("patch_embed.backbone", "", _timm_resnet(config["resnet"]["num_layers"]))
    rows += under("patch_embed.proj", "embedding", CONV)
    for i in range(config["transformer"]["num_layers"]):
        rows += under(f"blocks.{i}", f"Transformer/encoderblock_{i}", ENCODER_BLOCK)
    if config["classifier"] == "map":
        rows += under("attn_pool", "MAPHead_0", _MAP_HEAD)
    rows += under("norm", "Transformer/encoder_norm", NORM) + under("head", "head", DENSE)
    return under("", "", rows, heads=config["transformer"]["num_heads"])


def _timm_resnet(num_layers: tuple[int, ...]) -> Table:
    # Without stages timm's backbone *is* the stem.
    stem = "stem." if num_layers else ""
    rows = under(f"{stem}conv", "conv_root", KERNEL) + under(f"{stem}norm", "gn_root", NORM)
    for i, units in enumerate(num_layers):
        for j in range(units):
            unit = _RESIDUAL_UNIT + (_PROJECTION if j == 0 else [])
            rows += under(f"stages.{i}.blocks.{j}", f"block{i + 1}/unit{j + 1}", unit)
    return rows


def _timm_skeleton(names: Iterable[str]) -> dict[str, Any]:
    names = list(names)
    classifier = "token" if "cls_token" in names else "gap"
    config: dict[str, Any] = {
        "hidden_size": None,
        "classifier": "map" if "attn_pool.latent" in names else classifier,
        "transformer": {"num_layers": _count(names, r"blocks\.(\d+)"), "num_heads": 1},
    }
    if any(n.startswith("patch_embed.backbone.") for n in names):
        stages = _counts(names, r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)")
        config["resnet"] = {"num_layers": stages, "width_factor": 1}
    return config


def _timm_args(config: Config) -> dict[str, Any]:
    width, transformer = config["hidden_size"], config["transformer"]
    pools = {"token": "token", "gap": "avg", "unpooled": "", "token_unpooled": "", "map": "map"}
    args = {
        "patch_size": config["patches"]["size"][0],
        "embed_dim": width,
        "depth": transformer["num_layers"],
        "num_heads": transformer["num_heads"],
        "mlp_ratio": mlp_ratio(transformer["mlp_dim"], width),
        "global_pool": pools[config["classifier"]],
    }
    if not has_class_token(config):
        # Without `fc_norm=False` timm moves the last norm behind the mean.
        args |= {"class_token": False, "fc_norm": False}
    return args


def _timm_builds(config: Config, args: Mapping[str, Any]) -> bool:
    wanted = _timm_args(config)
    told = {"global_pool": "token", "class_token": True, "fc_norm": None, **args}
    if told["global_pool"] != wanted["global_pool"]:
        return False
    is_mean = wanted["global_pool"] == "avg"
    return told["class_token"] == has_class_token(config) and not (is_mean and told["fc_norm"])


def _timm_base(config: Config) -> str:
    if (resnet := config.get("resnet")) is None:
        return "vit_tiny_patch16_224"
    stages = tuple(resnet["num_layers"])
    if stages not in _HYBRIDS or resnet["width_factor"] != 1:
        raise UserError(
            f"timm has no hybrid with ResNet stages {stages} and width factor "
            f"{resnet['width_factor']}; it has {sorted(_HYBRIDS)} with width factor 1"
        )
    return _HYBRIDS[stages]


def _timm_points(config: Config) -> Pairs:
    points = []
    if config.get("resnet") is not None:
        points = _resnet_points(config["resnet"]["num_layers"])
    points += [
        ("embedding", "patch_embed"),
        ("Transformer/posembed_input", "norm_pre"),  # an identity just behind the addition
    ]
    depth = config["transformer"]["num_layers"]
    points += [(f"Transformer/encoderblock_{i}", f"blocks.{i}") for i in range(depth)]
    return [*points, ("Transformer/encoder_norm", "norm")]


def _resnet_points(num_layers: tuple[int, ...]) -> Pairs:
    backbone = "patch_embed.backbone"
    # Without stages timm's backbone *is* the stem. Its norm includes the activation, ours not.
    points = [("conv_root", f"{backbone}.{'stem.' if num_layers else ''}conv")]
    for i, units in enumerate(num_layers):
        stage, theirs = f"block{i + 1}", f"{backbone}.stages.{i}"
        points += [(f"{stage}/unit{j + 1}", f"{theirs}.blocks.{j}") for j in range(units)]
    return points


def _timm_differences(config: Config) -> list[Difference]:
    return [GELU, *_timm_unsaid(config)]


def _timm_unsaid(config: Config) -> list[Difference]:
    """What no argument of timm's models changes."""
    if config.get("resnet") is None:
        return []
    return [
        Difference("GroupNorm eps", "1e-6", "1e-5"),
        Difference("StdConv", "(w - mean) / (std + 1e-5)", "(w - mean) / sqrt(var + 1e-8)"),
    ]


# --- Hugging Face ---------------------------------------------------------------------------------


def _hf(config: Config) -> Table:
    """`ViTForImageClassification`; UserError for what Hugging Face has no model for."""
    if config.get("representation_size") is not None:
        raise UserError(
            "Hugging Face's classifier has no `pre_logits` before its head; drop it "
            "(`drop_pre_logits`, which drops the head that reads it too)"
        )
    return under("vit", "", _hf_headless(config)) + under("classifier", "head", DENSE)


def _hf_headless(config: Config) -> Table:
    """`ViTModel`, whose pooler is the official `pre_logits`."""
    if config.get("resnet") is not None:
        raise UserError("Hugging Face's ViT holds no hybrids; use official or timm")
    if config.get("transformer") is None or config["classifier"] != "token":
        raise UserError(
            "Hugging Face's ViT classifies by its class token; this model's classifier is "
            f"{config['classifier']!r}. Use official or timm"
        )
    transformer = config["transformer"]
    rows = hf.encoder(transformer["num_layers"], transformer["num_heads"], POSITIONS)
    if config.get("representation_size") is not None:
        rows += under("pooler.dense", "pre_logits", DENSE)
    return rows


def _hf_skeleton(names: Iterable[str]) -> dict[str, Any]:
    names = list(names)
    return {
        "classifier": "token",
        "hidden_size": None,
        "representation_size": 0 if "pooler.dense.weight" in names else None,
        "transformer": {
            "num_layers": _count(names, r"(?:vit\.)?encoder\.layer\.(\d+)"),
            "num_heads": 1,
        },
    }


def _hf_points(config: Config) -> Pairs:
    first, *others = hf.encoder_points("vit.", config["transformer"]["num_layers"])
    return [first, ("Transformer/posembed_input", "vit.embeddings"), *others]


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    transformer = config["transformer"]
    fields = hf.write_encoder(
        hidden_size=config["hidden_size"],
        num_layers=transformer["num_layers"],
        num_heads=transformer["num_heads"],
        mlp_dim=transformer["mlp_dim"],
        patch=tuple(config["patches"]["size"]),
        image_size=image_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )
    if config.get("representation_size") is not None:
        fields |= {"pooler_output_size": config["representation_size"], "pooler_act": "tanh"}
    return fields


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    told = hf.read_encoder(fields)
    return {
        "patches": {"size": hf.pair(told["patch_size"])},
        "hidden_size": told["hidden_size"],
        "transformer": {name: told[name] for name in ("num_layers", "num_heads", "mlp_dim")},
        "classifier": "token",
        "representation_size": None,
    }


FAMILIES = {
    "vit": Family(
        title="ViT",
        paper="2010.11929",
        model="vit:VisionTransformer",
        computes=COMPUTES,
        architectures=_architectures(),
        layouts={
            "timm": Layout(
                _timm,
                skeleton=_timm_skeleton,
                points=_timm_points,
                differences=_timm_differences,
                unsaid=_timm_unsaid,
                build=Timm(
                    _timm_args,
                    base=_timm_base,
                    always=True,
                    act_layer=TANH,
                    builds=_timm_builds,
                ),
            ),
            "hf": Layout(
                _hf,
                headless=_hf_headless,
                respell=hf.respelling("vit."),
                skeleton=_hf_skeleton,
                points=_hf_points,
                differences=lambda config: [GELU, Difference("LayerNorm eps", "1e-6", "1e-12")],
                build=HuggingFace(
                    "vit",
                    ("ViTForImageClassification", "ViTModel"),
                    _write_hf,
                    _read_hf,
                    shipped={"hidden_act": "gelu", "layer_norm_eps": 1e-12},
                    ours={"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
                ),
            ),
            "official": Layout(_official, reading=released.reading),
            "big_vision": Layout(
                _big_vision,
                reading=_read_big_vision,
                computed=lacks_positions,
                complete=_completes_big_vision,
                after_reading=_complete_big_vision,
                before_writing=_fold_class_position,
            ),
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

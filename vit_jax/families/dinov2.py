"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193, Table 17) and its registers (arXiv:2309.16588).

The image towers of TIPSv2 are models of this class too.

Accuracy: linear evaluation, the official README of facebookresearch/dinov2.

Names: DINOv2 in facebookresearch/dinov2, timm and transformers, whose models with registers are a
class of their own. timm has no mask token, and keeps the sum of class token and its position where
there are registers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families import hf
from vit_jax.families.family import (
    Architecture,
    Config,
    Edit,
    Family,
    HuggingFace,
    Layout,
    Pairs,
    Shapes,
    Size,
    Timm,
    Weights,
    is_head,
)
from vit_jax.families.parts import (
    ATTENTION,
    CONV,
    DENSE,
    LAYER_SCALE,
    MLP,
    NORM,
    POSITIONS,
    SMALL,
    always,
    encoder_block,
    encoder_blocks,
    encoder_points,
    gated_mlp,
    imagenet,
    mlp_ratio,
    patch_size,
    positions,
    with_mask_token,
    without_mask_token,
)
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import Table, rule, under

_PATCH, _SIZE = 14, 518
_REGISTERS = "dinov2_with_registers"  # transformers' kind of model
# Width, depth, heads, MLP, whether gated; linear evaluation without and with registers.
_SIZES = {
    "small": (384, 12, 6, 1536, False, 81.1, 80.9),
    "base": (768, 12, 12, 3072, False, 84.5, 84.6),
    "large": (1024, 24, 16, 4096, False, 86.3, 86.7),
    "giant": (1536, 40, 24, 4096, True, 86.5, 87.1),
}
# Published heads, by the end of a name: what they read, and where they lie.
_HEADS = {"lc": ("four_tokens_mean", ""), "imagenet1k_1_layer": ("token_mean", "hf")}
_EVALUATED = imagenet(_SIZE, 224 / 256)  # in the proportions of the official evaluation


def sizes(size: str) -> dict[str, Any]:
    """Constructor fields of a model of this size."""
    width, depth, heads, mlp, gated, *_ = _SIZES[size]
    fields = {
        "patch_size": _PATCH,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": mlp,
    }
    return {**fields, "gated_mlp": True} if gated else fields


def _weights(
    source: str,
    preprocess: Preprocess,
    layout: str = "timm",
    num_classes: int = 0,
    top1: float | None = None,
) -> Weights:
    return Weights(preprocess, num_classes, top1, source, layout, "Apache-2.0")


def _architectures(registers: int, hub: str, column: int) -> dict[str, Architecture]:
    found = {}
    more = {"num_registers": registers} if registers else {}
    infix = f"reg{registers}_" if registers else ""
    for size, row in _SIZES.items():
        name, theirs = f"vit_{size}_patch14_{infix}dinov2", f"facebook/{hub}-{size}"
        weights = {
            "facebook": _weights(theirs, _EVALUATED, "hf"),
            "lvd142m": _weights(f"timm/{name}.lvd142m", imagenet(_SIZE, 1.0)),
        }
        found[name] = Architecture(sizes(size) | more, weights)
        for ending, (reads, layout) in _HEADS.items():
            classifier = _weights(
                f"{theirs}-imagenet1k-1-layer" if layout else "",
                _EVALUATED,
                layout or "torch",
                num_classes=1000,
                top1=row[column],
            )
            config = {**sizes(size), **more, "head_reads": reads}
            found[f"{name}_{ending}"] = Architecture(config, {"": classifier}, timm_name="")
    return found


def _tipsv2() -> dict[str, Architecture]:
    """Image towers of TIPSv2: one register, images in [0, 1] as they are.

    Sizes as timm builds them; "TIPSv2" (arXiv:2604.12012). In timm the class token has no position.
    """
    found = {}
    images = imagenet(448, 1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    own = {"hidden_size": 1152, "num_layers": 27, "num_heads": 16, "mlp_dim": 4304}
    for size in ("base", "large", "so400m", "giant"):
        name = f"vit_{size}_patch14_reg1_tipsv2"
        known = {"patch_size": _PATCH, **own} if size == "so400m" else sizes(size)
        weights = {"webli": _weights(f"timm/{name}.webli", images)}
        more = {"num_registers": 1, "layer_scale_init": 1.0}
        found[name] = Architecture(known | more, weights)
    return found


# --- names ----------------------------------------------------------------------------------------


def _registers(config: Config) -> int:
    return config.get("num_registers", 0)


def _body(config: Config, gated: Table, registers: str) -> Table:
    """The names that the official code and timm share."""
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    if _registers(config):
        rows += rule(registers, "registers")
    rows += under("patch_embed.proj", "embedding", CONV)
    mlp = gated if config.get("gated_mlp") else MLP
    rows += encoder_blocks(config, "blocks", encoder_block(ATTENTION, mlp) + LAYER_SCALE)
    return rows + under("norm", "Transformer/encoder_norm", NORM)


_MASK_TOKEN = ("mask_token", "1 d -> 1 1 d")


def _torch_body(config: Config) -> Table:
    rows = _body(config, gated_mlp("w12", "w3"), "register_tokens")
    return rows + rule("mask_token", *_MASK_TOKEN)


def _torch(config: Config) -> Table:
    """The hub's models with a classifier: a backbone and a linear head."""
    return under("backbone", "", _torch_body(config)) + under("linear_head", "head", DENSE)


def _timm_body(config: Config) -> Table:
    return _body(config, gated_mlp("fc1", "fc2"), "reg_token")


def _timm(config: Config) -> Table:
    return _timm_body(config) + under("head", "head", DENSE)


def _hf_body(config: Config) -> Table:
    mlp = gated_mlp("weights_in", "weights_out") if config.get("gated_mlp") else MLP
    block = (
        under("norm1", "LayerNorm_0", NORM)
        + under("attention", "MultiHeadDotProductAttention_0", hf.ATTENTION)
        + rule("layer_scale1.lambda1", "residual_0/gamma")
        + under("norm2", "LayerNorm_1", NORM)
        + under("mlp", "MlpBlock_0", mlp)
        + rule("layer_scale2.lambda1", "residual_1/gamma")
    )
    rows = rule("embeddings.cls_token", "cls")
    rows += rule("embeddings.mask_token", *_MASK_TOKEN)
    rows += rule("embeddings.position_embeddings", POSITIONS)
    if _registers(config):
        rows += rule("embeddings.register_tokens", "registers")
    rows += under("embeddings.patch_embeddings.projection", "embedding", CONV)
    rows += encoder_blocks(config, "encoder.layer", block)
    return rows + under("layernorm", "Transformer/encoder_norm", NORM)


def _hf(prefix: str) -> Callable[[Config], Table]:
    def table(config: Config) -> Table:
        return under(prefix, "", _hf_body(config)) + under("classifier", "head", DENSE)

    return table


# --- what libraries leave out ---------------------------------------------------------------------


def _with_head(who: str, *read: str) -> Callable[..., None]:
    """The field `before_writing` of a layout that holds heads which read these alone."""

    def require(config: Config, tensors: Mapping[str, np.ndarray], _: Size | None) -> None:
        reads = config.get("head_reads", "token")
        if reads not in read and any(map(is_head, tensors)):
            raise UserError(
                f"{who} has no head that reads {reads!r}, but {' or '.join(map(repr, read))}: "
                "leave the head out, or take another layout"
            )

    return require


def _from_timm(shapes: Shapes, size: Size) -> Edit:
    edit = with_mask_token(shapes, size)
    if "registers" not in shapes:
        return edit
    return dataclasses.replace(
        edit,
        step="timm has no mask token, and has the position of the class token in the token itself: "
        "both are zero",
        changed={POSITIONS: lambda x: np.concatenate([np.zeros_like(x[:, :1]), x], axis=1)},
    )


def _to_timm(config: Config, tensors: Mapping[str, np.ndarray], size: Size | None) -> Edit:
    _with_head("timm", "token")(config, tensors, size)
    edit = without_mask_token(config, tensors, size)
    if not _registers(config):
        return edit
    position = tensors[POSITIONS][:, :1]
    # A position of zero leaves every bit of the token as it is.
    changed = {"cls": lambda x: x + position} if position.any() else {}
    return dataclasses.replace(
        edit,
        step="the position of the class token is added to the token, and the mask token is left "
        "out, as timm has neither",
        changed={**changed, POSITIONS: lambda x: x[:, 1:]},
    )


# --- how libraries build it -----------------------------------------------------------------------


def _timm_args(config: Config) -> dict[str, Any]:
    width, hidden = config["hidden_size"], config["mlp_dim"]
    args = {
        "patch_size": patch_size(config)[0],
        "embed_dim": width,
        "depth": config["num_layers"],
        "num_heads": config["num_heads"],
        # timm counts the gate and what it gates as one hidden layer.
        "mlp_ratio": mlp_ratio(2 * hidden if config.get("gated_mlp") else hidden, width),
    }
    if _registers(config):
        args["reg_tokens"] = _registers(config)
    return args


def _timm_base(config: Config) -> str:
    infix = "reg4_" if _registers(config) else ""
    return f"vit_{'giant' if config.get('gated_mlp') else 'small'}_patch14_{infix}dinov2"


def _hf_gated(width: int, ratio: int) -> int:
    """The width of transformers' gated MLPs: two thirds, up to a multiple of 8."""
    return (int(int(width * ratio) * 2 / 3) + 7) // 8 * 8


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    width, hidden, gated = config["hidden_size"], config["mlp_dim"], bool(config.get("gated_mlp"))
    # Its entry is a whole number.
    ratio = round(1.5 * hidden / width if gated else hidden / width)
    if (_hf_gated(width, ratio) if gated else width * ratio) != hidden:
        raise UserError(
            f"transformers' DINOv2 has no MLP of {hidden} in a width of {width}: its mlp_ratio is "
            "a whole number"
        )
    fields = {
        "hidden_size": width,
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "mlp_ratio": ratio,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "use_swiglu_ffn": gated,
        "apply_layernorm": True,
        "image_size": hf.one_or_two(image_size),
        "patch_size": hf.square(config["patch_size"]),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }
    if _registers(config):
        fields["num_register_tokens"] = _registers(config)
    return fields


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    width, ratio = fields.get("hidden_size", 768), fields.get("mlp_ratio", 4)
    gated = bool(fields.get("use_swiglu_ffn"))
    config = {
        "patch_size": hf.square(fields.get("patch_size", 14)),
        "hidden_size": width,
        "num_layers": fields.get("num_hidden_layers", 12),
        "num_heads": fields.get("num_attention_heads", 12),
        "mlp_dim": _hf_gated(width, ratio) if gated else int(width * ratio),
    }
    if gated:
        config["gated_mlp"] = True
    if fields["model_type"] == _REGISTERS:
        config["num_registers"] = fields.get("num_register_tokens", 4)
    if any("Classification" in str(cls) for cls in fields.get("architectures") or ()):
        config["head_reads"] = "token_mean"
    return config


_LIVE = tuple(
    (rf"(encoder\.layer\.\d+\.attention)\.{live}\.", rf"\1.{file}.")
    for live, file in {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }.items()
)


def _hf_points(prefix: str) -> Callable[[Config], Pairs]:
    return lambda config: hf.encoder_points(f"{prefix}.", config["num_layers"])


def _layouts(model_type: str, cls: str) -> dict[str, Layout]:
    return {
        "torch": Layout(
            _torch,
            headless=_torch_body,
            before_writing=_with_head("the official code", "token_mean", "four_tokens_mean"),
            points=encoder_points(),
        ),
        "timm": Layout(
            _timm,
            headless=_timm_body,
            after_reading=_from_timm,
            before_writing=_to_timm,
            points=encoder_points(),
            build=Timm(_timm_args, base=_timm_base),
        ),
        "hf": Layout(
            _hf(model_type),
            headless=_hf_body,
            respell=hf.respelling(f"{model_type}.", _LIVE),
            before_writing=_with_head("transformers", "token_mean"),
            points=_hf_points(model_type),
            build=HuggingFace(
                model_type, (f"{cls}ForImageClassification", f"{cls}Model"), _write_hf, _read_hf
            ),
        ),
    }


_WITHOUT = Family(
    title="DINOv2",
    paper="2304.07193",
    model="dinov2:DINOv2",
    computes="GELU in its erf form, or a gate of SiLU; LayerNorm eps 1e-6",
    architectures=_architectures(0, "dinov2", 5),
    layouts=_layouts("dinov2", "Dinov2"),
    small=always(SMALL),
    resize_method="dino",
    **positions(prefix=1),
)
FAMILIES = {
    "dinov2": _WITHOUT,
    "dinov2_registers": dataclasses.replace(
        _WITHOUT,
        title="DINOv2 with registers",
        paper="2309.16588",
        model="dinov2:RegisterDINOv2",
        architectures={**_architectures(4, "dinov2-with-registers", 6), **_tipsv2()},
        layouts=_layouts(_REGISTERS, "Dinov2WithRegisters"),
        resize_method="timm",
    ),
}

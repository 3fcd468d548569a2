"""DINOv3 (Siméoni et al. 2025, arXiv:2508.10104, Table 2), and models of the same class.

EUPE and LingBot-Vision (arXiv:2607.05247) are these models with other weights.

Names: facebookresearch/dinov3 ('torch'), timm's class `Eva`, transformers' `DINOv3ViTModel`.
Queries and values have biases, keys have none; in the 7B none of the three has. timm has two names
for each of the others: `…_qkvb` with these biases, and one without, since in some of the released
weights they are zero.

Weights of Meta's are gated and under its own licence (LicenseRef-DINOv3: the DINOv3 License); none
is shipped with this library, and none is needed to test it.
"""

import re
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
    Size,
    Timm,
    Weights,
)
from vit_jax.families.parts import (
    ANGLES,
    CONV,
    DENSE,
    ERF_EPS5,
    GAMMAS,
    HEADS,
    LAYER_SCALE,
    MLP,
    NORM,
    OUT,
    QKV,
    SMALL,
    always,
    encoder_block,
    encoder_blocks,
    encoder_points,
    imagenet,
    merged,
    mlp_ratio,
    patch_size,
    with_mask_token,
    without_mask_token,
)
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import Table, rule, under

# Width, depth, heads, width of the MLP, and whether it is gated (arXiv:2508.10104, Table 2).
_SIZES = {
    "tiny": (192, 12, 3, 768, False),
    "small": (384, 12, 6, 1536, False),
    "small_plus": (384, 12, 6, 1536, True),
    "base": (768, 12, 12, 3072, False),
    "large": (1024, 24, 16, 4096, False),
    "huge_plus": (1280, 32, 20, 5120, True),
    "giant": (1536, 40, 24, 4096, True),
    "7b": (4096, 40, 32, 8192, True),
}
_BIASED = ("query", "value")
# Photographs (LVD-1689M) and images of satellites (SAT-493M), as the official README prepares them.
_IMAGES = imagenet(256, 1.0, method="bilinear", resize="squash")
_SATELLITE = imagenet(
    256,
    1.0,
    mean=(0.430, 0.411, 0.296),
    std=(0.213, 0.156, 0.143),
    method="bilinear",
    resize="squash",
)
_LINGBOT = imagenet(512, 1.0, method="bilinear", resize="squash")
_WITH_SATELLITE = ("large", "7b")
# Repositories of transformers' weights: facebook/dinov3-vit{…}16-pretrain-{lvd1689m, sat493m}.
_REPOSITORY = {
    "small": "s",
    "small_plus": "splus",
    "base": "b",
    "large": "l",
    "huge_plus": "hplus",
    "7b": "7b",
}


def _config(size: str, qkv_bias: tuple[str, ...]) -> dict[str, Any]:
    width, depth, heads, mlp_dim, gated = _SIZES[size]
    return {
        "patch_size": 16,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": mlp_dim,
        "gated_mlp": gated,
        "qkv_bias": qkv_bias,
        "num_registers": 4,
    }


def _meta(name: str, size: str, *, of_timm: bool) -> dict[str, Weights]:
    """Weights of Meta's, as timm holds them, or as Meta publishes them with transformers' names."""
    images = {"lvd1689m": _IMAGES}
    if size in _WITH_SATELLITE:
        images["sat493m"] = _SATELLITE

    def weights(tag: str, preprocess: Preprocess) -> Weights:
        theirs = f"facebook/dinov3-vit{_REPOSITORY[size]}16-pretrain-{tag}"
        source, layout = (f"timm/{name}.{tag}", "timm") if of_timm else (theirs, "hf")
        return Weights(preprocess, 0, None, source, layout, "LicenseRef-DINOv3")

    return {tag: weights(tag, preprocess) for tag, preprocess in images.items()}


def _eupe(name: str) -> dict[str, Weights]:
    source = f"timm/{name}.eupe_lvd1689m"
    licence = "LicenseRef-FAIR-Noncommercial-Research"
    return {"eupe_lvd1689m": Weights(_IMAGES, 0, None, source, "timm", licence)}


def _architectures() -> dict[str, Architecture]:
    found = {}
    for size in _REPOSITORY:
        name = f"vit_{size}_patch16_dinov3"
        if size == "7b":
            found[name] = Architecture(_config(size, ()), _meta(name, size, of_timm=False))
            continue
        found[name] = Architecture(_config(size, ()), _meta(name, size, of_timm=True))
        name = f"{name}_qkvb"
        more = _eupe(name) if size in ("small", "base") else {}
        weights = _meta(name, size, of_timm=False) | more
        found[name] = Architecture(_config(size, _BIASED), weights)
    name = "vit_tiny_patch16_dinov3_qkvb"
    found[name] = Architecture(_config("tiny", _BIASED), _eupe(name))
    for size in ("small", "base", "large", "giant"):
        name = f"vit_{size}_patch16_lingbot"
        source = f"belfner/{name}.robbyant"
        weights = {"robbyant": Weights(_LINGBOT, 0, None, source, "timm", "Apache-2.0")}
        same = None if size == "giant" else f"vit_{size}_patch16_dinov3"
        found[name] = Architecture(_config(size, ()), weights, alias_of=same)
    return found


def _biased(config: Config, where: str) -> bool:
    """Whether queries and values have biases; UserError for what no library but ours has."""
    names = tuple(config["qkv_bias"])
    if set(names) not in ({*_BIASED}, set()):
        raise UserError(
            f"{where} has biases of {' and '.join(_BIASED)} or none; this model has qkv_bias="
            f"{names}"
        )
    return bool(names)


# --- biases of zeros ------------------------------------------------------------------------------


def _without_zero_biases(pattern: str) -> Callable[[Config, Mapping[str, np.ndarray]], Edit | None]:
    """The field `before_reading` of a layout: a model without biases takes a file's if zero.

    Args:
      pattern: Full match of the names of these biases.
    """

    def before_reading(config: Config, theirs: Mapping[str, np.ndarray]) -> Edit | None:
        if config["qkv_bias"]:
            return None
        biases = [name for name in theirs if re.fullmatch(pattern, name)]
        if wrong := [name for name in biases if np.any(theirs[name])]:
            name = str(config.get("model_name") or "…").removesuffix("_qkvb")
            raise UserError(
                f"{len(wrong)} of its biases of queries and values are not zero, such as "
                f"{wrong[0]!r}, and a {name} has none; read it as a {name}_qkvb"
            )
        if not biases:
            return None
        step = f"biases of queries and values, all zero, left out: {len(biases)} tensors"
        return Edit(step, dropped=tuple(biases))

    return before_reading


# --- facebookresearch/dinov3 ----------------------------------------------------------------------

_MASKED = r"blocks\.\d+\.attn\.qkv\.bias"
_OUT = under("proj", "out", OUT)
_GATED = under("w1", "gate", DENSE) + under("w2", "Dense_0", DENSE) + under("w3", "Dense_1", DENSE)


def _tokens(registers: str) -> Table:
    rows = rule("cls_token", "cls") + rule(registers, "registers")
    return rows + under("patch_embed.proj", "embedding", CONV)


_LAST = under("norm", "Transformer/encoder_norm", NORM)
_HEAD = under("head", "head", DENSE)


def official(config: Config) -> Table:
    """The names of `DinoVisionTransformer`, dinov3/models/vision_transformer.py."""
    attention = merged(QKV, bias=False)
    if _biased(config, "the official code"):
        biases = tuple(f"{name}/bias" for name in _BIASED)
        attention += rule("bias", biases, "(n heads d) -> n heads d", zeros=(1,))
    attention = under("qkv", "", attention) + _OUT
    block = encoder_block(attention, _GATED if config["gated_mlp"] else MLP) + LAYER_SCALE
    rows = _tokens("storage_tokens") + rule("mask_token", "mask_token", "1 d -> 1 1 d")
    return rows + encoder_blocks(config, "blocks", block) + _LAST + _HEAD


def _before_official(config: Config, theirs: Mapping[str, np.ndarray]) -> Edit | None:
    """Biases are multiplied by their masks, which are 1 for queries and values, 0 for keys."""
    masks = [name for name in theirs if re.fullmatch(_MASKED + "_mask", name)]
    masked = {}
    for mask in masks:
        name = mask.removesuffix("_mask")
        masked[name] = lambda x, mask=mask: (x * theirs[mask]).astype(x.dtype)
    known = {**theirs, **{name: masked[name](theirs[name]) for name in masked if name in theirs}}
    left_out = _without_zero_biases(_MASKED)(config, known)
    if left_out is not None:
        return left_out
    if not masks:
        return None
    step = (
        "biases of queries, keys and values multiplied by their bias_mask, as in the forward pass"
    )
    return Edit(step, changed=masked)


def _official_buffers(config: Config, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    width = config["hidden_size"]
    quarter = width // config["num_heads"] // 4
    found = {"rope_embed.periods": (100.0 ** (np.arange(quarter) / quarter)).astype(np.float32)}
    if config["qkv_bias"]:
        mask = np.repeat(np.array([1, 0, 1], np.float32), width)
        found |= {f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(config["num_layers"])}
    return found


# --- timm -----------------------------------------------------------------------------------------

_TIMM_GATED = (
    under("fc1_g", "gate", DENSE)
    + under("fc1_x", "Dense_0", DENSE)
    + under("fc2", "Dense_1", DENSE)
)


def timm(config: Config) -> Table:
    """The names of timm's `Eva` for these models."""
    attention = under("qkv", "", merged(QKV, bias=False)) + _OUT
    if _biased(config, "timm"):
        for theirs, ours in (("q_bias", "query/bias"), ("v_bias", "value/bias")):
            attention += rule(theirs, ours, "(heads d) -> heads d")
    block = encoder_block(attention, _TIMM_GATED if config["gated_mlp"] else MLP) + GAMMAS
    return _tokens("reg_token") + encoder_blocks(config, "blocks", block) + _LAST + _HEAD


def _timm_args(config: Config) -> dict[str, Any]:
    width, gated = config["hidden_size"], config["gated_mlp"]
    return {
        "patch_size": patch_size(config)[0],
        "embed_dim": width,
        "depth": config["num_layers"],
        "num_heads": config["num_heads"],
        "mlp_ratio": mlp_ratio(config["mlp_dim"], width),
        "swiglu_mlp": gated,
        "swiglu_align_to": 1 if gated else 0,
        "qkv_bias": _biased(config, "timm"),
        "num_reg_tokens": config["num_registers"],
        "global_pool": "token",
    }


def _reads_class_token(_: Config, args: Mapping[str, Any]) -> bool:
    """Without classes it is the tokens that count, which do not depend on what reads them."""
    return args.get("global_pool", "token") == "token" or args.get("num_classes") == 0


# --- Hugging Face ---------------------------------------------------------------------------------

_HF_NUMERICS = {"layer_norm_eps": 1e-5, "rope_theta": 100.0}
_HF_SCALE = rule("layer_scale1.lambda1", "residual_0/gamma")
_HF_SCALE += rule("layer_scale2.lambda1", "residual_1/gamma")


def _hf(config: Config) -> Table:
    """The names of transformers' `DINOv3ViTModel`, in files: it has no classifier."""
    attention = under("o_proj", "out", OUT)
    for name in QKV:
        kept = HEADS if name in config["qkv_bias"] else HEADS[:1]
        attention += under(f"{name[0]}_proj", name, kept)
    parts = {"up_proj": "Dense_0", "down_proj": "Dense_1"}
    parts |= {"gate_proj": "gate"} if config["gated_mlp"] else {}
    mlp = [row for theirs, ours in parts.items() for row in under(theirs, ours, DENSE)]
    block = (
        under("norm1", "LayerNorm_0", NORM)
        + under("attention", "MultiHeadDotProductAttention_0", attention)
        + under("norm2", "LayerNorm_1", NORM)
        + under("mlp", "MlpBlock_0", mlp)
        + _HF_SCALE
    )
    tokens = rule("cls_token", "cls") + rule("register_tokens", "registers")
    tokens += rule("mask_token", "mask_token")
    tokens += under("patch_embeddings", "embedding", CONV)
    return under("embeddings", "", tokens) + encoder_blocks(config, "layer", block) + _LAST


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    biases = {f"{name}_bias": name in config["qkv_bias"] for name in QKV}
    return {
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": config["mlp_dim"],
        "hidden_act": "silu" if config["gated_mlp"] else "gelu",
        "use_gated_mlp": config["gated_mlp"],
        "num_register_tokens": config["num_registers"],
        **biases,
        "proj_bias": True,
        "mlp_bias": True,
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "image_size": hf.one_or_two(image_size),
        "patch_size": hf.one_or_two(patch_size(config)),
        **_HF_NUMERICS,
    }


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    has = {name: fields.get(f"{name}_bias", name != "key") for name in QKV}
    return {
        "patch_size": fields.get("patch_size", 16),
        "hidden_size": fields.get("hidden_size", 384),
        "num_layers": fields.get("num_hidden_layers", 12),
        "num_heads": fields.get("num_attention_heads", 6),
        "mlp_dim": fields.get("intermediate_size", 1536),
        "gated_mlp": fields.get("use_gated_mlp", False),
        "qkv_bias": tuple(name for name in QKV if has[name]),
        "num_registers": fields.get("num_register_tokens", 0),
    }


def _leaves_open(config: Config) -> tuple[str, ...]:
    names = [f"vit_{size}_patch16_dinov3" for size in _WITH_SATELLITE]
    if config["hidden_size"] not in [_SIZES[size][0] for size in _WITH_SATELLITE]:
        return ()
    return (
        "whether it learned from photographs or from images of satellites, which want another mean "
        "and deviation: where nothing beside the weights says it, photographs are assumed; "
        f"--model NAME.sat493m, such as {names[0]}_qkvb.sat493m, says the other",
    )


FAMILIES = {
    "dinov3": Family(
        title="DINOv3",
        paper="2508.10104",
        model="dinov3:DINOv3",
        computes=f"{ERF_EPS5}, rotary positions",
        architectures=_architectures(),
        layouts={
            # First, because its table has all tensors of ours.
            "torch": Layout(
                official,
                ignore=(
                    r"rope_embed\.periods",
                    _MASKED + "_mask",
                    r"local_cls_norm\..*",
                    r"projectors\..*",
                ),
                before_reading=_before_official,
                buffers=_official_buffers,
            ),
            "timm": Layout(
                timm,
                before_reading=_without_zero_biases(r"blocks\.\d+\.attn\.[qv]_bias"),
                after_reading=with_mask_token,
                before_writing=without_mask_token,
                points=encoder_points(embedding=("embedding", "patch_embed.proj")),
                differences=lambda config: [ANGLES],
                build=Timm(_timm_args, img_size=False, always=True, builds=_reads_class_token),
            ),
            "hf": Layout(
                _hf,
                respell=hf.respelling("", ((r"model\.layer\.", "layer."),), heads=()),
                before_reading=_without_zero_biases(r"layer\.\d+\.attention\.[qv]_proj\.bias"),
                points=encoder_points(
                    embedding=("embedding", "embeddings.patch_embeddings"), blocks="layer"
                ),
                differences=lambda config: [ANGLES],
                build=HuggingFace(
                    "dinov3_vit",
                    (None, "DINOv3ViTModel"),
                    _write_hf,
                    _read_hf,
                    shipped=_HF_NUMERICS,
                    ours=_HF_NUMERICS,
                ),
            ),
        },
        small=always(SMALL),
        leaves_open=_leaves_open,
        stride=patch_size,
    ),
}

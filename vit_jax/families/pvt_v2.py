"""Pyramid Vision Transformer v2 (Wang et al. 2022, arXiv:2106.13797, Table 1).

Top-1: the official README of whai362/PVT.

Names: Pyramid Vision Transformer v2 in timm.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.families import hf
from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    Family,
    HuggingFace,
    Layout,
    Size,
    Timm,
)
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ERF_EPS5,
    HEADS,
    MLP,
    NORM,
    OUT,
    PATCH_EMBEDDING,
    QKV,
    REDUCED_ATTENTION,
    REDUCTION,
    SMALL_STAGES,
    always,
    architecture,
    block_points,
    encoder_block,
    imagenet,
)
from vit_jax.families.rules import Table, under

_WIDTHS = (64, 128, 320, 512)


def _pvt(
    depths: tuple[int, ...],
    top1: float,
    *,
    widths: tuple[int, ...] = _WIDTHS,
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
    linear: bool = False,
) -> Architecture:
    config = {
        "hidden_sizes": widths,
        "depths": depths,
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": mlp_ratios,
        "sr_ratios": (8, 4, 2, 1),
        "linear": linear,
    }
    return architecture(config, imagenet(224), top1, tag="in1k")


def pvt_v2(config: Config) -> Table:
    rows: Table = []
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        theirs, ours = f"stages.{i}", f"stage_{i}"
        embedding = "patch_embed" if i == 0 else f"{theirs}.downsample"
        rows += under(embedding, f"{ours}/embedding", PATCH_EMBEDDING)
        block = _block(reduces=config["linear"] or config["sr_ratios"][i] > 1)
        for j in range(depth):
            rows += under(f"{theirs}.blocks.{j}", f"{ours}/encoderblock_{j}", block, heads=heads)
        rows += under(f"{theirs}.norm", f"{ours}/norm", NORM)
    return rows + under("head", "head", DENSE)


def _block(*, reduces: bool) -> Table:
    attention = REDUCED_ATTENTION + (REDUCTION if reduces else [])
    return encoder_block(attention, MLP + under("dwconv", "depthwise", CONV))


def timm_args(config: Config) -> dict[str, Any]:
    sizes = ("depths", "num_heads", "mlp_ratios", "sr_ratios")
    args = {name: tuple(config[name]) for name in sizes}
    return args | {"embed_dims": tuple(config["hidden_sizes"]), "linear": config["linear"]}


# --- Hugging Face ---------------------------------------------------------------------------------

# One entry says the eps of all normalisations.
_EPS = Difference("LayerNorm eps of patches and reductions", "1e-5", "1e-6")
_NUMERICS = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}


def pvt_v2_hf(config: Config) -> Table:
    """The names of transformers' `PvtV2ForImageClassification`."""
    embedding = under("proj", "conv", CONV) + under("layer_norm", "norm", NORM)
    rows: Table = []
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        theirs, ours = f"layers.{i}", f"stage_{i}"
        rows += under(f"{theirs}.patch_embedding", f"{ours}/embedding", embedding)
        block = _hf_block(reduces=config["linear"] or config["sr_ratios"][i] > 1)
        for j in range(depth):
            rows += under(f"{theirs}.blocks.{j}", f"{ours}/encoderblock_{j}", block, heads=heads)
        rows += under(f"{theirs}.layer_norm", f"{ours}/norm", NORM)
    return under("pvt_v2.encoder", "", rows) + under("classifier", "head", DENSE)


def _hf_block(*, reduces: bool) -> Table:
    attention = [row for x in QKV for row in under(x, x, HEADS)] + under("proj", "out", OUT)
    if reduces:
        attention += under("spatial_reduction", "reduction/conv", CONV)
        attention += under("layer_norm", "reduction/norm", NORM)
    return (
        under("layer_norm_1", "LayerNorm_0", NORM)
        + under("attention", "MultiHeadDotProductAttention_0", attention)
        + under("layer_norm_2", "LayerNorm_1", NORM)
        + under("mlp.dense1", "MlpBlock_0/Dense_0", DENSE)
        + under("mlp.dwconv.dwconv", "MlpBlock_0/depthwise", CONV)
        + under("mlp.dense2", "MlpBlock_0/Dense_1", DENSE)
    )


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    stages = len(config["depths"])
    return {
        "image_size": hf.one_or_two(image_size),
        "num_encoder_blocks": stages,
        "depths": list(config["depths"]),
        "hidden_sizes": list(config["hidden_sizes"]),
        "num_attention_heads": list(config["num_heads"]),
        "mlp_ratios": list(config["mlp_ratios"]),
        "sr_ratios": list(config["sr_ratios"]),
        "linear_attention": config["linear"],
        "patch_sizes": [7, *[3] * (stages - 1)],
        "strides": [4, *[2] * (stages - 1)],
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        **_NUMERICS,
    }


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_sizes": tuple(fields["hidden_sizes"]),
        "depths": tuple(fields["depths"]),
        "num_heads": tuple(fields["num_attention_heads"]),
        "mlp_ratios": tuple(fields["mlp_ratios"]),
        "sr_ratios": tuple(fields["sr_ratios"]),
        "linear": fields.get("linear_attention", False),
    }


FAMILIES = {
    "pvt_v2": Family(
        title="PVT v2",
        stem=lambda config: ("stage_0/embedding/conv/kernel",),
        paper="2106.13797",
        model="pvt_v2:PyramidVisionTransformerV2",
        computes=ERF_EPS5,
        architectures={
            "pvt_v2_b0": _pvt((2, 2, 2, 2), 70.5, widths=(32, 64, 160, 256)),
            "pvt_v2_b1": _pvt((2, 2, 2, 2), 78.7),
            "pvt_v2_b2": _pvt((3, 4, 6, 3), 82.0),
            "pvt_v2_b2_li": _pvt((3, 4, 6, 3), 82.1, linear=True),
            "pvt_v2_b3": _pvt((3, 4, 18, 3), 83.1),
            "pvt_v2_b4": _pvt((3, 8, 27, 3), 83.6),
            "pvt_v2_b5": _pvt((3, 6, 40, 3), 83.8, mlp_ratios=(4, 4, 4, 4)),
        },
        layouts={
            "timm": Layout(
                pvt_v2,
                points=block_points("stages.{i}.blocks.{j}"),
                build=Timm(timm_args, img_size=False),
            ),
            "hf": Layout(
                pvt_v2_hf,
                points=block_points("pvt_v2.encoder.layers.{i}.blocks.{j}"),
                differences=lambda config: [_EPS],
                unsaid=lambda config: [_EPS],
                build=HuggingFace(
                    "pvt_v2",
                    ("PvtV2ForImageClassification", None),
                    _write_hf,
                    _read_hf,
                    shipped=_NUMERICS,
                    ours=_NUMERICS,
                    eps={r"(patch_embedding|attention)\.layer_norm": 1e-5},
                ),
            ),
        },
        small=always(SMALL_STAGES),
    ),
}

"""TNT (Han et al. 2021, arXiv:2103.00112, Table 1). Top-1: the official README (huawei-noah).

Names: TNT in timm: two blocks in one, over the pixels of a patch and over patches.
"""

from typing import Any

from vit_jax.families.family import Architecture, Config, Family, Layout, Size, Timm
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ERF_EPS5,
    LINEAR,
    MLP,
    NORM,
    OUT,
    POSITIONS,
    always,
    architecture,
    imagenet,
    merged,
    positions,
)
from vit_jax.families.rules import Table, rule, under

_HALF = (0.5, 0.5, 0.5)


def _tnt(width: int, heads: int, inner: int, top1: float) -> Architecture:
    config = {
        "patch_size": 16,
        "hidden_size": width,
        "num_heads": heads,
        "inner_size": inner,
        "inner_heads": 4,
        "num_layers": 12,
    }
    return architecture(config, imagenet(224, mean=_HALF, std=_HALF), top1, tag="in1k")


_ATTENTION = (
    under("qk", "", merged(("query", "key"), bias=False))
    + rule("v.weight", "value/kernel", "(heads d) c -> c heads d")
    + under("proj", "out", OUT)
)
_PIXELS = rule("pixel_pos", "posembed_pixels/pos_embedding", "1 d h w -> 1 h w d")


def _transformer(norm: str, attention: str, norm_mlp: str, mlp: str) -> Table:
    return (
        under(norm, "LayerNorm_0", NORM)
        + under(attention, "MultiHeadDotProductAttention_0", _ATTENTION)
        + under(norm_mlp, "LayerNorm_1", NORM)
        + under(mlp, "MlpBlock_0", MLP)
    )


_INNER = _transformer("norm_in", "attn_in", "norm_mlp_in", "mlp_in")
_OUTER = _transformer("norm_out", "attn_out", "norm_mlp", "mlp")


def _project(dense: Table) -> Table:
    rows = under("norm1_proj", "LayerNorm_0", NORM) + under("norm2_proj", "LayerNorm_1", NORM)
    return rows + under("proj", "dense", dense)


def _table(config: Config) -> Table:
    rows = rule("cls_token", "cls") + rule("patch_pos", POSITIONS) + _PIXELS
    rows += under("pixel_embed.proj", "embedding", CONV) + under("", "project", _project(DENSE))
    for i in range(config["num_layers"]):
        block = under("", "inner", _INNER, heads=config["inner_heads"])
        block += under("", "outer", _OUTER, heads=config["num_heads"])
        block += under("", "project", _project(LINEAR))
        rows += under(f"blocks.{i}", f"encoderblock_{i}", block)
    return rows + under("norm", "encoder_norm", NORM) + under("head", "head", DENSE)


def _timm_args(config: Config) -> dict[str, Any]:
    return {
        "patch_size": config["patch_size"],
        "embed_dim": config["hidden_size"],
        "num_heads_outer": config["num_heads"],
        "inner_dim": config["inner_size"],
        "num_heads_inner": config["inner_heads"],
        "depth": config["num_layers"],
    }


def _stride(config: Config) -> Size:
    return config["patch_size"], config["patch_size"]


def _points(config: Config) -> list[tuple[str, str]]:
    """Blocks give two things at once; their MLPs, the last layers of both streams, one each."""
    points = [("project", "norm2_proj")]
    for i in range(config["num_layers"]):
        points.append((f"encoderblock_{i}/inner/MlpBlock_0", f"blocks.{i}.mlp_in"))
        points.append((f"encoderblock_{i}/outer/MlpBlock_0", f"blocks.{i}.mlp"))
    return [*points, ("encoder_norm", "norm")]


FAMILIES = {
    "tnt": Family(
        title="TNT",
        paper="2103.00112",
        model="tnt:TNT",
        computes=ERF_EPS5,
        architectures={
            "tnt_s_patch16_224": _tnt(384, 6, 24, 81.5),
            "tnt_b_patch16_224": _tnt(640, 10, 40, 82.9),
        },
        layouts={"timm": Layout(_table, points=_points, build=Timm(_timm_args))},
        small=always(
            {
                "hidden_size": 48,
                "num_heads": 2,
                "inner_size": 12,
                "inner_heads": 2,
                "num_layers": 2,
            }
        ),
        **positions(prefix=1, stride=_stride),
    ),
}

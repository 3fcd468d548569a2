"""TNT in timm: two blocks in one, over the pixels of a patch and over patches."""

from typing import Any

from vit_jax.checkpoint.tables.family import Config, Names, Size
from vit_jax.checkpoint.tables.parts import CONV, DENSE, LINEAR, MLP, NORM, OUT, merged
from vit_jax.checkpoint.tables.plain import POSITIONS, positions
from vit_jax.families.rules import Table, rule, under

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


def _tnt(config: Config) -> Table:
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
    "tnt": Names({"timm": _tnt}, _timm_args, points=_points, **positions(prefix=1, stride=_stride))
}

"""SimpleViT (Beyer et al. 2022, arXiv:2205.01580; widths of Dosovitskiy et al., Table 1).

Top-1 of S/16: the abstract, after 300 epochs. The evaluation of big_vision shrinks the image to 256
by averaging areas, which is closest to bilinear interpolation with antialiasing.

Names: SimpleViT, and big_vision's other plain models: its names, which are ours.
"""

from vit_jax.families.family import Architecture, Config, Family, Layout
from vit_jax.families.parts import COMPUTES, SMALL, always, architecture, positions
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import Table, rule, under

_IMAGES = Preprocess(224, 0.875, resize="shortest", method="bilinear", antialias=True)


def _simple_vit(width: int, depth: int, heads: int, top1: float | None = None) -> Architecture:
    config = {
        "patch_size": 16,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": 4 * width,
    }
    return architecture(config, _IMAGES, top1, layout="big_vision")


def _same(*names: str) -> Table:
    return [row for name in names for row in rule(name, name)]


def _below(name: str, table: Table) -> Table:
    return under(name, name, table, sep="/")


_LAYER = _same("kernel", "bias")
_NORM = _same("scale", "bias")
_ATTENTION = [row for x in ("query", "key", "value", "out") for row in _below(x, _LAYER)]
_MLP = _below("Dense_0", _LAYER) + _below("Dense_1", _LAYER)
_BLOCK = (
    _below("LayerNorm_0", _NORM)
    + _below("MultiHeadDotProductAttention_0", _ATTENTION)
    + _below("LayerNorm_1", _NORM)
    + _below("MlpBlock_0", _below("Dense_0", _LAYER) + _below("Dense_1", _LAYER))
)


_POOL = (
    _below("MultiHeadDotProductAttention_0", _ATTENTION)
    + _below("LayerNorm_0", _NORM)
    + _below("MlpBlock_0", _MLP)
)


def _learns_positions(config: Config) -> bool:
    return config.get("position_embedding") == "learned"


def _table(config: Config) -> Table:
    rows = _below("embedding", _LAYER)
    for i in range(config["num_layers"]):
        rows += _below(f"Transformer/encoderblock_{i}", _BLOCK)
    rows += _below("Transformer/encoder_norm", _NORM)
    if _learns_positions(config):
        rows += _same("pos_embedding")
    if config.get("pool") == "token":
        rows += _same("cls")
    if config.get("pool") == "map":
        rows += _below("MAPHead_0", _same("probe") + _POOL)
    if config.get("representation_size") is not None:
        rows += _below("pre_logits", _LAYER)
    return under("params", "", rows + _below("head", _LAYER), sep="/")


FAMILIES = {
    "simple_vit": Family(
        title="SimpleViT",
        paper="2205.01580",
        model="simple_vit:SimpleViT",
        computes=COMPUTES,
        architectures={
            "simple_vit_s_16": _simple_vit(384, 12, 6, 80.0),
            "simple_vit_b_16": _simple_vit(768, 12, 12),
            "simple_vit_l_16": _simple_vit(1024, 24, 16),
        },
        layouts={"big_vision": Layout(_table)},
        small=always(SMALL),
        reference="big_vision",
        figures="figures of big_vision",
        resize_method="official",
        # Without learned positions no parameter depends on the image size.
        **positions(prefix=0, name="pos_embedding", present=_learns_positions),
    ),
}

"""SimpleViT: big_vision's names, which are ours."""

from vit_jax.checkpoint.tables.family import Config, Names
from vit_jax.families.rules import Table, rule, under


def _same(*names: str) -> Table:
    return [row for name in names for row in rule(name, name)]


def _below(name: str, table: Table) -> Table:
    return under(name, name, table, sep="/")


_LAYER = _same("kernel", "bias")
_NORM = _same("scale", "bias")
_ATTENTION = [row for x in ("query", "key", "value", "out") for row in _below(x, _LAYER)]
_BLOCK = (
    _below("LayerNorm_0", _NORM)
    + _below("MultiHeadDotProductAttention_0", _ATTENTION)
    + _below("LayerNorm_1", _NORM)
    + _below("MlpBlock_0", _below("Dense_0", _LAYER) + _below("Dense_1", _LAYER))
)


def _simple_vit(config: Config) -> Table:
    rows = _below("embedding", _LAYER)
    for i in range(config["transformer"]["num_layers"]):
        rows += _below(f"Transformer/encoderblock_{i}", _BLOCK)
    rows += _below("Transformer/encoder_norm", _NORM)
    if config.get("representation_size") is not None:
        rows += _below("pre_logits", _LAYER)
    return under("params", "", rows + _below("head", _LAYER), sep="/")


# No parameter depends on the image size: positions are computed.
FAMILIES = {"simple_vit": Names({"big_vision": _simple_vit})}

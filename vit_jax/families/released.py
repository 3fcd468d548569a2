"""The spelling of the released files, which precede Flax linen.

Pre-linen modules were numbered in one sequence, whatever their class, so an encoder block holds
`LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3`. The hybrids' files store
GroupNorm scale and bias as (1, 1, 1, C). Mixers were always linen.

Files of both spellings exist, so `reading` builds its table from the names found, row by row;
`writing` builds the table of the released layout.
"""

import re
from collections.abc import Iterable, Mapping

from vit_jax.families.rules import SAME, Rule, Table

_RELEASED = {
    "LayerNorm_1": "LayerNorm_2",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "MlpBlock_0": "MlpBlock_3",
}
_LINEN = {released: linen for linen, released in _RELEASED.items()}
_BLOCK = re.compile(r"(?P<block>(?:.*/)?encoderblock(?:_\d+)?)/(?P<module>[^/]+)/(?P<rest>.+)")
_GROUP_NORM = re.compile(r"(?:.*/)?gn(?:\d+|_root|_proj)/(?:scale|bias)")
_GROUP_NORM_PATTERN = "1 1 1 c -> c"


def reading(shapes: Mapping[str, tuple[int, ...]]) -> Table:
    """Table from a file's names, of either spelling, with their shapes to linen names."""
    return [
        Rule(
            name,
            (_respell(name, _LINEN),),
            _GROUP_NORM_PATTERN if _GROUP_NORM.fullmatch(name) and len(shape) == 4 else SAME,
        )
        for name, shape in shapes.items()
    ]


def is_old(names: Iterable[str]) -> bool:
    """Whether some of the names are in the spelling that precedes linen."""
    return any("MultiHeadDotProductAttention_1/" in name for name in names)


def clash(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of the names that mean the same parameter, in two spellings; None if none do."""
    found: dict[str, str] = {}
    for name in names:
        if (other := found.setdefault(_respell(name, _LINEN), name)) != name:
            return other, name
    return None


def writing(names: Iterable[str]) -> Table:
    """Table between the released spelling and these linen names."""
    return [
        Rule(
            _respell(name, _RELEASED),
            (name,),
            _GROUP_NORM_PATTERN if _GROUP_NORM.fullmatch(name) else SAME,
        )
        for name in names
    ]


def _respell(name: str, spelling: Mapping[str, str]) -> str:
    if not (m := _BLOCK.fullmatch(name)):
        return name
    return f"{m['block']}/{spelling.get(m['module'], m['module'])}/{m['rest']}"

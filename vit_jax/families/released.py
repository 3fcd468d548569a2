"""The spelling of the released files, which precede Flax linen.

Pre-linen modules were numbered in one sequence, whatever their class, so an encoder block holds
`LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3`. The hybrids' files store
GroupNorm scale and bias as (1, 1, 1, C). Mixers were always linen.

Files of both spellings exist, so `reading` builds its table from the names found, row by row;
`writing` builds the table of the released layout.
"""

import re
from collections.abc import Iterable, Mapping

from vit_jax.errors import UserError
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
    """Table from a file's names, of either spelling, with their shapes to linen names.

    Raises UserError when two names of the file mean the same parameter.
    """
    rows, found = [], {}
    for name, shape in shapes.items():
        ours = _respell(name, _LINEN)
        if (other := found.setdefault(ours, name)) != name:
            raise UserError(
                f"{other!r} and {name!r} both mean {ours!r}; the file mixes two spellings"
            )
        old_norm = _GROUP_NORM.fullmatch(name) and len(shape) == 4
        rows.append(Rule(name, (ours,), _GROUP_NORM_PATTERN if old_norm else SAME))
    return rows


def is_old(names: Iterable[str]) -> bool:
    """Whether some of the names are in the spelling that precedes linen."""
    return any("MultiHeadDotProductAttention_1/" in name for name in names)


def clash(names: Iterable[str]) -> bool:
    """Whether two of the names mean the same parameter, in two spellings."""
    names = list(names)
    return len({_respell(name, _LINEN) for name in names}) != len(names)


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

"""big_vision's names for the same tensors.

Linen names, but the position embedding lies beside the encoder (`pos_embedding`), as older files
had it inside (`Transformer/pos_embedding`), and the attention-pooling head of early ViT-G files
lies at the top. Current files hold no position for the class token, which is folded into `cls`;
`has_class_position` recognises those that do, as big_vision's own loader does.
"""

import math
from collections.abc import Iterable, Mapping

from vit_jax.checkpoint.tables import released
from vit_jax.errors import UserError
from vit_jax.families.rules import Table, rule

POSEMB = "Transformer/posembed_input/pos_embedding"
_POSITIONS = ("pos_embedding", "Transformer/pos_embedding")
_INLINED_HEAD = ("probe", "MlpBlock_0", "MultiHeadDotProductAttention_0", "LayerNorm_0")


def is_big_vision(names: Iterable[str]) -> bool:
    """Whether these (without `params/`) can only be big_vision's."""
    names = set(names)
    return bool(names & {*_POSITIONS, "probe", "MAPHead_0/probe"})


def reading(shapes: Mapping[str, tuple[int, ...]]) -> Table:
    """Table from a file's names, of any age, to linen names."""
    rows = [r._replace(ours=(_ours(r.ours[0]),)) for r in released.reading(shapes)]
    if len({r.ours for r in rows}) != len(rows):
        raise UserError("the file holds its position embeddings or its head twice")
    return rows


def writing(names: Iterable[str]) -> Table:
    """Table between current big_vision names and these linen names."""
    if "conv_root/kernel" in (names := list(names)):
        raise UserError("big_vision has no hybrids of ResNet and Transformer")
    return [
        row
        for name in names
        for row in rule("params/" + ("pos_embedding" if name == POSEMB else name), name)
    ]


def has_class_position(num_tokens: int) -> bool:
    """Whether so many positions are a square grid's and a class token's: big_vision's own test."""
    return math.isqrt(num_tokens) ** 2 + 1 == num_tokens


def _ours(name: str) -> str:
    if name in _POSITIONS:
        return POSEMB
    return f"MAPHead_0/{name}" if name.split("/")[0] in _INLINED_HEAD else name

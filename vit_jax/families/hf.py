"""What several models of transformers share: names of layers, two spellings, entries of a config.

Live models of transformers 5 call their parts otherwise than the files do, which kept the names of
version 4. The tables have the files' names.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vit_jax.families.family import Pairs, Size
from vit_jax.families.parts import CONV, DENSE, HEADS, NORM, OUT, QKV
from vit_jax.families.parts import MLP as FC
from vit_jax.families.rules import Table, rule, under

ATTENTION = [row for x in QKV for row in under(f"attention.{x}", x, HEADS)] + under(
    "output.dense", "out", OUT
)
# What a block's MLP is called where its two layers are one's `intermediate` and `output`.
MLP = under("intermediate.dense", "Dense_0", DENSE) + under("output.dense", "Dense_1", DENSE)


def block(attention: Table) -> Table:
    """The pre-norm block of ViT, DeiT and Swin; `attention` by the names below `attention`."""
    return (
        under("layernorm_before", "LayerNorm_0", NORM)
        + under("attention", "MultiHeadDotProductAttention_0", attention)
        + under("layernorm_after", "LayerNorm_1", NORM)
        + under("", "MlpBlock_0", MLP)
    )


def encoder(depth: int, heads: int, positions: str) -> Table:
    """`ViTModel` without its pooler. `positions`: our name of the table of positions."""
    rows = (
        rule("embeddings.cls_token", "cls")
        + rule("embeddings.position_embeddings", positions)
        + under("embeddings.patch_embeddings.projection", "embedding", CONV)
    )
    for i in range(depth):
        rows += under(f"encoder.layer.{i}", f"Transformer/encoderblock_{i}", block(ATTENTION))
    return under("", "", rows + under("layernorm", "Transformer/encoder_norm", NORM), heads=heads)


_TOWER_ATTENTION = [row for x in QKV for row in under(f"{x[0]}_proj", x, HEADS)] + under(
    "out_proj", "out", OUT
)


def tower_blocks(depth: int, encoder: str) -> Table:
    """The blocks `encoder.layers` of CLIP's and SigLIP's towers; `encoder`: what ours is called."""
    block = (
        under("layer_norm1", "LayerNorm_0", NORM)
        + under("self_attn", "MultiHeadDotProductAttention_0", _TOWER_ATTENTION)
        + under("layer_norm2", "LayerNorm_1", NORM)
        + under("mlp", "MlpBlock_0", FC)
    )
    return [
        row
        for i in range(depth)
        for row in under(f"encoder.layers.{i}", f"{encoder}/encoderblock_{i}", block)
    ]


# Names in a live model -> names in the files.
LIVE = (
    (r"layers\.(\d+)\.attention\.q_proj\.", r"encoder.layer.\1.attention.attention.query."),
    (r"layers\.(\d+)\.attention\.k_proj\.", r"encoder.layer.\1.attention.attention.key."),
    (r"layers\.(\d+)\.attention\.v_proj\.", r"encoder.layer.\1.attention.attention.value."),
    (r"layers\.(\d+)\.attention\.o_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"layers\.(\d+)\.(layernorm_\w+)\.", r"encoder.layer.\1.\2."),
)


def respelling(
    prefix: str,
    live: tuple[tuple[str, str], ...] = LIVE,
    heads: tuple[str, ...] = ("classifier.",),
) -> Callable[[Iterable[str]], dict[str, str]]:
    """The field `respell` of a `Layout`: either version's names, with or without the prefix.

    Args:
      prefix: What stands before all names but the heads' in a model with a head, and in none
        without one.
      live: Patterns of names in a live model, from their beginning, and the files' names.
      heads: Beginnings of the heads' names.
    """
    patterns = [(re.compile(theirs), files) for theirs, files in live]

    def respell(names: Iterable[str]) -> dict[str, str]:
        names = list(names)
        before = prefix if any(n.startswith(heads) for n in names) else ""
        spelled = {}
        for name in names:
            file = name.removeprefix(prefix)
            for pattern, files in patterns:
                if match := pattern.match(file):
                    file = match.expand(files) + file[match.end() :]
                    break
            spelled[file if file.startswith(heads) else before + file] = name
        return spelled

    return respell


def encoder_points(prefix: str, depth: int) -> Pairs:
    """Pairs of modules, ours and those of ViT or DeiT, that give the same tokens."""
    blocks = [(f"Transformer/encoderblock_{i}", f"{prefix}encoder.layer.{i}") for i in range(depth)]
    return [
        ("embedding", f"{prefix}embeddings.patch_embeddings"),
        *blocks,
        ("Transformer/encoder_norm", f"{prefix}layernorm"),
    ]


def write_encoder(
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    mlp_dim: int,
    patch: Size,
    image_size: Size,
    hidden_act: str,
    layer_norm_eps: float,
) -> dict[str, Any]:
    """The entries of ViT's and DeiT's `config.json`."""
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": mlp_dim,
        "hidden_act": hidden_act,
        "layer_norm_eps": layer_norm_eps,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "image_size": one_or_two(image_size),
        "patch_size": one_or_two(patch),
    }


def read_encoder(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse: our fields of ViT and DeiT."""
    return {
        "patch_size": fields.get("patch_size", 16),
        "hidden_size": fields.get("hidden_size", 768),
        "num_layers": fields.get("num_hidden_layers", 12),
        "num_heads": fields["num_attention_heads"],
        "mlp_dim": fields.get("intermediate_size", 3072),
    }


def one_or_two(size: Size) -> int | list[int]:
    """(height, width) as an entry of a `config.json`: one number for a square."""
    rows, columns = size
    return rows if rows == columns else [rows, columns]


def pair(value: Any) -> Size:
    """The reverse: (height, width)."""
    if isinstance(value, int):
        return value, value
    rows, columns = value
    return int(rows), int(columns)


def square(value: Any) -> int:
    """A number, or two equal ones; ValueError for others."""
    rows, columns = pair(value)
    if rows != columns:
        raise ValueError(f"square one, but {rows}×{columns}")
    return rows

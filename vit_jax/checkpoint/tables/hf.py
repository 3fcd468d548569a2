"""Hugging Face's names for the Vision Transformer (`ViTForImageClassification`, `ViTModel`).

The table holds the names in the files, which are the same in transformers 4 and 5. Models alive
in transformers 5 call some of them otherwise; `respell` accepts both.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.checkpoint.tables.parts import CONV, DENSE, HEADS, NORM, OUT, QKV
from vit_jax.errors import UserError
from vit_jax.families.registry import family_of
from vit_jax.families.rules import Table, rule, under

IGNORE = ()
HEAD = "classifier."

_ATTENTION = [row for x in QKV for row in under(f"attention.{x}", x, HEADS)] + under(
    "output.dense", "out", OUT
)
ENCODER_BLOCK = (
    under("layernorm_before", "LayerNorm_0", NORM)
    + under("attention", "MultiHeadDotProductAttention_0", _ATTENTION)
    + under("layernorm_after", "LayerNorm_1", NORM)
    + under("intermediate.dense", "MlpBlock_0/Dense_0", DENSE)
    + under("output.dense", "MlpBlock_0/Dense_1", DENSE)
)

# Names in a live model of transformers 5 -> names in the files.
_LIVE = (
    (r"layers\.(\d+)\.attention\.q_proj\.", r"encoder.layer.\1.attention.attention.query."),
    (r"layers\.(\d+)\.attention\.k_proj\.", r"encoder.layer.\1.attention.attention.key."),
    (r"layers\.(\d+)\.attention\.v_proj\.", r"encoder.layer.\1.attention.attention.value."),
    (r"layers\.(\d+)\.attention\.o_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"layers\.(\d+)\.(layernorm_\w+)\.", r"encoder.layer.\1.\2."),
)


def table(config: Mapping[str, Any], *, head: bool = True) -> Table:
    """The table of a model with these constructor fields.

    With a head it is a `ViTForImageClassification`, without one a `ViTModel`, whose pooler is
    the official `pre_logits`. Raises UserError for what Hugging Face has no model for.
    """
    if family_of(config) != "vit" or config.get("resnet") is not None:
        raise UserError("Hugging Face's ViT holds neither hybrids nor Mixers; use official or timm")
    if config.get("transformer") is None or config["classifier"] != "token":
        raise UserError(
            "Hugging Face's ViT classifies by its class token; this model's classifier is "
            f"{config['classifier']!r}. Use official or timm"
        )
    has_pre_logits = config.get("representation_size") is not None
    if head and has_pre_logits:
        raise UserError(
            "Hugging Face's classifier has no `pre_logits` before its head; drop it "
            "(`drop_pre_logits`, which drops the head that reads it too)"
        )
    embeddings = (
        rule("cls_token", "cls")
        + rule("position_embeddings", "Transformer/posembed_input/pos_embedding")
        + under("patch_embeddings.projection", "embedding", CONV)
    )
    rows = under("embeddings", "", embeddings)
    for i in range(config["transformer"]["num_layers"]):
        rows += under(f"encoder.layer.{i}", f"Transformer/encoderblock_{i}", ENCODER_BLOCK)
    rows += under("layernorm", "Transformer/encoder_norm", NORM)
    if head:
        return under("vit", "", rows) + under("classifier", "head", DENSE)
    return rows + (under("pooler.dense", "pre_logits", DENSE) if has_pre_logits else [])


def respell(names: Iterable[str]) -> dict[str, str]:
    """The table's spelling -> the given one, for either spelling, with or without `vit.`."""
    names = list(names)
    prefix = "vit." if any(n.startswith(HEAD) for n in names) else ""
    spelled = {}
    for name in names:
        file = name.removeprefix("vit.")
        for live, ours in _LIVE:
            file = re.sub(f"^{live}", ours, file)
        spelled[file if file.startswith(HEAD) else prefix + file] = name
    return spelled

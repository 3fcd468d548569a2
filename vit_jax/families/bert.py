"""BERT (Devlin et al. 2018, arXiv:1810.04805) as a text tower.

A file does not hold the number of attention heads, so that models of registered sizes are
recognised, and others where their config is recorded.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    Edit,
    Family,
    HuggingFace,
    Layout,
    Shape,
    Shapes,
    Size,
    Weights,
    is_head,
)
from vit_jax.families.parts import DENSE, NORM, QKV, SMALL, always
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import Table, rule, under
from vit_jax.families.shapes import bert_shapes
from vit_jax.families.text import Text

# Section 3 of the paper.
_SIZES = {
    "base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072},
    "large": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
}
# A published model's vocabulary, longest text and segments; our fields, transformers', and values.
_TABLES = {
    "vocab_size": ("vocab_size", 30_522),
    "max_length": ("max_position_embeddings", 512),
    "num_segments": ("type_vocab_size", 2),
}
_WIDTHS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}
_PUBLISHED = {name: value for name, (_, value) in _TABLES.items()}


def _architecture(size: str) -> Architecture:
    repository = f"google-bert/bert-{size}-uncased"
    vocabulary = f"https://huggingface.co/{repository}/resolve/main/vocab.txt"
    weights = Weights(
        Preprocess(),
        num_classes=0,
        source=f"https://huggingface.co/{repository}/resolve/main/model.safetensors",
        layout="hf",
        licence="Apache-2.0",
        text=Text("bert", vocabulary),
    )
    return Architecture({**_SIZES[size], **_PUBLISHED}, {"": weights}, timm_name="")


def _shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape]:
    del image_size
    return dict(bert_shapes({**_PUBLISHED, **config}, num_classes))


# --- Hugging Face ---------------------------------------------------------------------------------

_ENCODER = "BertEncoder_0"
_EMBEDDINGS = {"position": "position", "token_type": "segment", "word": "token"}
_BLOCK = (
    [
        row
        for part in QKV
        for row in under(f"attention.self.{part}", f"attention_block/attention_layer/{part}", DENSE)
    ]
    + under("attention.output.dense", "attention_block/dense_layer", DENSE)
    + under("attention.output.LayerNorm", "attention_block/layer_norm", NORM)
    + under("intermediate.dense", "mlp_block/mlp/dense_layer", DENSE)
    + under("output.dense", "mlp_block/dense_layer", DENSE)
    + under("output.LayerNorm", "mlp_block/layer_norm", NORM)
)
# What a file of a model with other tasks has beside the encoder.
_OTHERS = ("pooler.", "cls.", "embeddings.position_ids")
_POOLER = "transformers calls it `pooler`: a layer after the first token, which this tower lacks"


def _hf(config: Config) -> Table:
    """`BertModel` without its pooler."""
    rows: Table = []
    for theirs, ours in _EMBEDDINGS.items():
        rows += rule(
            f"embeddings.{theirs}_embeddings.weight",
            f"{_ENCODER}/embedder/embedders_{ours}_ids/embedding",
        )
    rows += under("embeddings.LayerNorm", f"{_ENCODER}/layer_norm", NORM)
    for i in range(config["num_layers"]):
        ours = f"{_ENCODER}/encoder_block/layer_sequence/layers_{i}"
        rows += under(f"encoder.layer.{i}", ours, _BLOCK)
    return rows


def _respell(names: Iterable[str]) -> dict[str, str]:
    """With and without `bert.`; norms are called as in TensorFlow in old files."""
    spelled = {}
    for name in names:
        ours = name.removeprefix("bert.")
        ours = ours.replace("LayerNorm.gamma", "LayerNorm.weight")
        ours = ours.replace("LayerNorm.beta", "LayerNorm.bias")
        if not ours.startswith(_OTHERS):
            spelled[ours] = name
    return spelled


def _after_reading(shapes: Shapes, image_size: Size) -> Edit:
    del shapes, image_size
    return Edit(f"the encoder alone is read, without a pooler ({_POOLER})")


def _before_writing(
    config: Config, tensors: Mapping[str, np.ndarray], image_size: Size | None
) -> Edit:
    del config, image_size
    if any(map(is_head, tensors)):
        raise UserError(
            "Hugging Face's BertModel has no linear head on its first token; drop the head "
            "(--num-classes 0), or keep the official format"
        )
    return Edit(f"no pooler is written ({_POOLER}): load it with `add_pooling_layer=False`")


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    del image_size
    config = {**_PUBLISHED, **config}
    return {
        **{theirs: config[ours] for ours, theirs in _WIDTHS.items()},
        **{theirs: config[ours] for ours, (theirs, _) in _TABLES.items()},
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
    }


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    base = _SIZES["base"]
    return {ours: fields.get(theirs, base[ours]) for ours, theirs in _WIDTHS.items()} | {
        ours: fields.get(theirs, default) for ours, (theirs, default) in _TABLES.items()
    }


FAMILIES = {
    "bert": Family(
        title="BERT",
        paper="1810.04805",
        model="bert:Bert",
        computes="GELU in its tanh form, LayerNorm eps 1e-12 after each branch",
        architectures={f"bert_{size}": _architecture(size) for size in _SIZES},
        layouts={
            "hf": Layout(
                _hf,
                respell=_respell,
                after_reading=_after_reading,
                before_writing=_before_writing,
                differences=lambda config: [Difference("GELU", "tanh form", "erf form")],
                build=HuggingFace(
                    "bert",
                    ("BertModel", "BertModel"),
                    _write_hf,
                    _read_hf,
                    shipped={"hidden_act": "gelu", "layer_norm_eps": 1e-12},
                    ours={"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-12},
                    pooler=True,
                ),
            )
        },
        small=always({**SMALL, "vocab_size": 64}),
        inputs=("tokens",),
        shapes=_shapes,
        stem=lambda config: (),
        reference="hf",
    )
}

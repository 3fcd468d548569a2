"""Hugging Face transformers as the reference; see `timm_reference`.

Checked against transformers 5.23, whose live models call their parts otherwise than version 4 and
than the files do; the names here are read off the model, so that either version works.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.checkpoint.torch_names import respelled
from vit_jax.families.registry import is_google
from vit_jax.parity import hf_survey
from vit_jax.parity.references import Difference, Point, load, zoo_points

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers")
LAYOUT = "hf"

_BLOCK = "encoder.layer.{}"
_IN_BLOCK = ".layernorm_before.weight"


def build(
    config: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    *,
    num_classes: int,
    image_size: tuple[int, int],
    matched: bool,
) -> "torch.nn.Module":
    """`ViTForImageClassification`, or `ViTModel` without classes; arguments as timm's `build`.

    Of the survey's families, that of `hf_survey`.
    """
    if not is_google(config):
        sizes = {"num_classes": num_classes, "image_size": image_size}
        return hf_survey.build(config, state, matched=matched, **sizes)
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    transformer = config["transformer"]
    fields: dict[str, Any] = {"num_labels": num_classes}
    if config.get("representation_size") is not None:
        fields["pooler_output_size"] = config["representation_size"]
    if matched:
        fields |= {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    theirs = ViTConfig(
        hidden_size=config["hidden_size"],
        num_hidden_layers=transformer["num_layers"],
        num_attention_heads=transformer["num_heads"],
        intermediate_size=transformer["mlp_dim"],
        patch_size=config["patches"]["size"][0],
        image_size=image_size,
        **fields,
    )
    with torch.device("meta"):  # no time for random weights that are replaced at once
        if num_classes:
            module = ViTForImageClassification(theirs)
        else:
            module = ViTModel(theirs, add_pooling_layer="pooler.dense.weight" in state)
    live = respelled(module.state_dict(), LAYOUT)
    load(module, {live.get(name, name): x for name, x in state.items()})
    return module.eval()


def logits_of(output: Any) -> "torch.Tensor":
    """The logits, or without classes what the classifier would read."""
    if "logits" in output:
        return output.logits
    pooled = output.pooler_output
    return output.last_hidden_state[:, 0] if pooled is None else pooled


def points(config: Mapping[str, Any], module: "torch.nn.Module") -> list[Point]:
    """Where the two sides can be compared on the way, first to last."""
    if not is_google(config):
        return zoo_points(config)
    live = respelled(module.state_dict(), LAYOUT)
    prefix = "vit." if "classifier.weight" in live else ""

    def block(i: int) -> str:
        return live[prefix + _BLOCK.format(i) + _IN_BLOCK].removesuffix(_IN_BLOCK)

    return [
        Point("embedding", f"{prefix}embeddings.patch_embeddings"),
        Point("Transformer/posembed_input", f"{prefix}embeddings"),
        *(
            Point(f"Transformer/encoderblock_{i}", block(i))
            for i in range(config["transformer"]["num_layers"])
        ),
        Point("Transformer/encoder_norm", f"{prefix}layernorm"),
    ]


def differences(config: Mapping[str, Any]) -> list[Difference]:
    """What Hugging Face ships otherwise than we compute."""
    if not is_google(config):
        return hf_survey.differences(config)
    return [
        Difference("GELU", "tanh form", "erf form"),
        Difference("LayerNorm eps", "1e-6", "1e-12"),
    ]

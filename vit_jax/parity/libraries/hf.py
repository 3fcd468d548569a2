"""Hugging Face transformers (checked against 5.24).

Live models of version 5 call their parts otherwise than version 4 and than the files do; names are
read off the model, so that either version works.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.checkpoint import hf_dir, names
from vit_jax.errors import UserError
from vit_jax.families.family import HuggingFace
from vit_jax.parity.references import Config, Library, Point, load

if TYPE_CHECKING:
    import torch


def _construct(
    config: Config,
    state: Mapping[str, np.ndarray],
    num_classes: int,
    image_size: tuple[int, int],
    matched: bool,
) -> Any:
    """The class with a head, or without classes the one without."""
    import torch
    import transformers

    layout = names.layout_of(config, "hf")
    if layout.build is None:
        raise UserError(f"Hugging Face has no {names.called(config)}")
    build: HuggingFace = layout.build
    with_head, without = build.architectures
    fields = hf_dir.entries(config, build, image_size) | ({} if matched else dict(build.shipped))
    theirs = transformers.AutoConfig.for_model(build.model_type, num_labels=num_classes, **fields)
    # A class that there is only with a head gives its features where it has no labels.
    cls, options = getattr(transformers, with_head if num_classes or not without else without), {}
    if without == "ViTModel" and not num_classes and "pooler.dense.weight" not in state:
        options = {"add_pooling_layer": False}
    with torch.device("meta"):  # no time for random weights that are replaced at once
        module = cls(theirs, **options)
    if any(x.is_meta for name, x in module.named_buffers() if name not in module.state_dict()):
        module = cls(theirs, **options)  # Swin computes indices that no file holds
    live = names.respelled(module.state_dict(), config, "hf")
    load(module, {live.get(name, name): x for name, x in state.items()})
    if matched:
        _match(module, config, build)
    return module


def _match(module: "torch.nn.Module", config: Config, build: HuggingFace) -> None:
    """Our numerics, where no entry of its config can say them."""
    from transformers.activations import ACT2FN

    for name, part in module.named_modules():
        for pattern, eps in build.eps.items():
            if re.search(pattern, name) and hasattr(part, "eps"):
                setattr(part, "eps", eps)  # noqa: B010, torch types no attributes of modules
        for pattern, activation in build.activations(config).items():
            if re.search(pattern, name):
                part.activation = ACT2FN[activation]


def _logits_of(output: Any) -> "torch.Tensor":
    """The logits, or without classes what the classifier would read."""
    if "logits" in output:
        return output.logits
    pooled = output.pooler_output
    return output.last_hidden_state[:, 0] if pooled is None else pooled


def _points(config: Config, layout: str, module: "torch.nn.Module") -> list[Point]:
    """The family's points, whose names are the files', by the names of the live model."""
    state = module.state_dict()
    live = names.respelled(state, config, layout)
    bare = f"{module.base_model_prefix}."  # pyright: ignore[reportAttributeAccessIssue]
    inside = any(name.startswith(bare) for name in state)

    def name_of(part: str) -> str:
        part = part if inside else part.removeprefix(bare)
        for file, name in live.items():
            if file.startswith(f"{part}.") and name.endswith(rest := file[len(part) :]):
                return name.removesuffix(rest)
        return part

    pairs = names.layout_of(config, layout).points(config)
    return [Point(ours, name_of(theirs)) for ours, theirs in pairs]


LIBRARY = Library("hf", ("torch", "transformers"), _construct, _logits_of, _points)

"""Hugging Face transformers (checked against 5.24).

Live models of version 5 call their parts otherwise than version 4 and than the files do; names are
read off the model, so that either version works.
"""

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.checkpoint import hf_dir, names
from vit_jax.errors import UserError
from vit_jax.families.family import HuggingFace
from vit_jax.parity.libraries import rotary
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
    if num_classes or build.outputs == "num_labels":
        fields[build.outputs] = num_classes
    theirs = transformers.AutoConfig.for_model(build.model_type, **fields)
    # A class that there is only with a head gives its features where it has no labels.
    name, options = with_head if num_classes or not without else without, {}
    if name is None:
        raise UserError(f"Hugging Face has no {build.model_type} with a head; take num_classes=0")
    cls = getattr(transformers, name)
    if build.pooler and not num_classes and "pooler.dense.weight" not in state:
        options = {"add_pooling_layer": False}
    try:
        with torch.device("meta"):  # no time for random weights that are replaced at once
            module = cls(theirs, **options)
    except RuntimeError as error:  # its masked autoencoder's, whose table is of a square
        height, width = image_size
        raise UserError(
            f"transformers' {name} cannot be built for images of {height}×{width} pixels: {error}"
        ) from error
    if any(x.is_meta for name, x in module.named_buffers() if name not in module.state_dict()):
        module = cls(theirs, **options)  # Swin computes indices that no file holds
    live = names.respelled(module.state_dict(), config, "hf")
    if state.keys() <= live.keys():
        load(module, {live[name]: x for name, x in state.items()})
    else:  # a live model splits or joins some of the files' tensors
        module = _loaded(cls, theirs, state)
    if matched:
        _match(module, config, build)
    return module


def _loaded(cls: Any, config: Any, state: Mapping[str, np.ndarray]) -> Any:
    """A model with these weights of a file, by transformers' own loader; strictly."""
    import torch
    from transformers.utils import logging

    tensors = {name: torch.from_numpy(np.array(x)) for name, x in state.items()}
    dtype = next(iter(tensors.values())).dtype
    logging.disable_progress_bar()
    module, told = cls.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )
    if wrong := {name: told[name] for name in told if told[name]}:
        raise UserError(f"transformers' {cls.__name__} does not take these weights: {wrong}")
    return module


def _match(module: "torch.nn.Module", config: Config, build: HuggingFace) -> None:
    """Our numerics, where no entry of its config can say them."""
    from transformers.activations import ACT2FN

    rotary.match_hf(module)

    for name, part in module.named_modules():
        for pattern, eps in build.eps.items():
            if re.search(pattern, name) and hasattr(part, "eps"):
                setattr(part, "eps", eps)  # noqa: B010, torch types no attributes of modules
        for pattern, activation in build.activations(config).items():
            if re.search(pattern, name):
                part.activation = ACT2FN[activation]
    if eps := build.norm_eps(config):
        module.register_forward_hook(functools.partial(_rescored, eps))


def _rescored(eps: float, module: Any, inputs: Any, output: Any) -> None:
    """The scores of a model of two towers, of vectors divided by their length + eps."""
    del inputs
    image, text = output.vision_model_output.pooler_output, output.text_model_output.pooler_output
    image, text = (z / (z.norm(dim=-1, keepdim=True) + eps) for z in (image, text))
    scores = image @ text.t() * module.logit_scale.exp() + module.logit_bias
    output.logits_per_image = scores


def _logits_of(output: Any) -> "torch.Tensor":
    """The logits, the scores of two towers, a projection; without one what it would read."""
    for name in ("logits_per_image", "logits", "image_embeds", "text_embeds"):
        if name in output:
            return output[name]
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

"""timm (checked against 1.0.31; each fact has a test that fails when it no longer holds)."""

import importlib
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.checkpoint.beside import timm_description
from vit_jax.families.preprocess import Preprocess
from vit_jax.parity.libraries import rotary
from vit_jax.parity.references import Config, Library, load

if TYPE_CHECKING:
    import torch


def _construct(
    config: Config,
    state: Mapping[str, np.ndarray],
    num_classes: int,
    image_size: tuple[int, int],
    matched: bool,
) -> Any:
    import torch

    for device in ("meta", "cpu"):
        with torch.device(device):  # 'meta': no time for random weights that are replaced at once
            module = construct(
                config, num_classes=num_classes, image_size=image_size, our_activation=matched
            )
        load(module, state)
        if not any(x.is_meta for x in module.buffers()):
            break  # else it holds what no file does: indices, masks
    if matched:
        match_group_norm(module)
        match_std_conv(module)
        rotary.match_timm(module)
    return module


def construct(
    config: Config, *, num_classes: int, image_size: tuple[int, int], our_activation: bool
) -> "torch.nn.Module":
    """timm's model of our config, with initial weights.

    Args:
      config, num_classes, image_size: As of `Library.build`.
      our_activation: Whether it gets our activation, where it takes one; else timm's own.
    """
    import timm
    from timm.layers import create_act

    # The arguments that exported files carry: what is proven here is what they say.
    described = timm_description(
        config, num_classes=num_classes, image_size=image_size, preprocess=Preprocess()
    )
    args = dict(described["model_args"])
    activation = args.pop("act_layer", None) or described.get("act_layer")
    if our_activation and activation is not None:
        args["act_layer"] = create_act.get_act_layer(activation)  # a class, which all of them take
    if "architecture" in described:
        return timm.create_model(described["architecture"], **args)
    module, _, name = described["class"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**args)


def match_group_norm(module: "torch.nn.Module", eps: float = 1e-6) -> None:
    """Gives every GroupNorm our epsilon."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.eps = eps


def match_std_conv(module: "torch.nn.Module") -> None:
    """Gives every weight-standardised convolution our formula."""
    from timm.layers.std_conv import StdConv2dSame

    for part in module.modules():
        if isinstance(part, StdConv2dSame):
            part.forward = types.MethodType(_std_conv, part)


def _std_conv(conv: Any, x: "torch.Tensor") -> "torch.Tensor":
    import torch
    from timm.layers.padding import pad_same

    w = conv.weight
    std = w.std(dim=(1, 2, 3), keepdim=True, correction=0)
    w = (w - w.mean(dim=(1, 2, 3), keepdim=True)) / (std + 1e-5)
    if conv.same_pad:
        x = pad_same(x, conv.kernel_size, conv.stride, conv.dilation)
    return torch.nn.functional.conv2d(
        x, w, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


LIBRARY = Library("timm", ("torch", "timm"), _construct)

"""timm as the reference: how it is built, what its blocks are called, how its numerics differ.

Facts checked against timm 1.0.31; each has a test that fails when it no longer holds.
"""

import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vit_jax.checkpoint.timm_file import timm_description
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import family_of, is_google
from vit_jax.parity.references import Difference, Point, load, zoo_points

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "timm")
LAYOUT = "timm"

_GELU = Difference("GELU", "tanh form", "erf form")
_GROUP_NORM = Difference("GroupNorm eps", "1e-6", "1e-5")
_STD_CONV = Difference("StdConv", "(w - mean) / (std + 1e-5)", "(w - mean) / sqrt(var + 1e-8)")


def build(
    config: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    *,
    num_classes: int,
    image_size: tuple[int, int],
    matched: bool,
) -> "torch.nn.Module":
    """timm's model with these weights.

    Args:
      config: Our constructor fields.
      state: The weights in timm's names (`to_torch`), loaded strictly.
      num_classes: 0 for none.
      image_size: (height, width) in pixels.
      matched: Whether its numerics are made ours; else they are what timm ships.
    """
    import torch

    for device in ("meta", "cpu"):
        with torch.device(device):  # 'meta': no time for random weights that are replaced at once
            module = construct(
                config, num_classes=num_classes, image_size=image_size, tanh_gelu=matched
            )
        load(module, state)
        if not any(x.is_meta for x in module.buffers()):
            break  # else it holds what no file does: indices, masks
    if matched:
        match_group_norm(module)
        match_std_conv(module)
    return module.eval()


def construct(
    config: Mapping[str, Any], *, num_classes: int, image_size: tuple[int, int], tanh_gelu: bool
) -> "torch.nn.Module":
    """timm's model of our config, with initial weights."""
    import timm
    from timm.layers import GELUTanh
    from timm.models.mlp_mixer import MlpMixer

    # The arguments that exported files carry: what is proven here is what they say.
    described = timm_description(
        config, num_classes=num_classes, image_size=image_size, preprocess=Preprocess()
    )
    args = dict(described["model_args"])
    if is_google(config):
        args["img_size"] = image_size
        args.pop("act_layer", None)
        if tanh_gelu:
            args["act_layer"] = GELUTanh
    if "architecture" in described:
        return timm.create_model(described["architecture"], **args)
    return MlpMixer(**args)


def logits_of(output: "torch.Tensor") -> "torch.Tensor":
    """The logits, or the features without classes, in what a model returns."""
    return output


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


class Family(NamedTuple):
    """What is particular to one of our families, as functions of the model's config."""

    points: Callable[[Mapping[str, Any]], list[Point]]
    differences: Callable[[Mapping[str, Any]], list[Difference]]


def _vit_points(config: Mapping[str, Any]) -> list[Point]:
    points = []
    if config.get("resnet") is not None:
        points = _resnet_points(config["resnet"]["num_layers"])
    points += [
        Point("embedding", "patch_embed"),
        Point("Transformer/posembed_input", "norm_pre"),  # an identity just behind the addition
    ]
    points += [
        Point(f"Transformer/encoderblock_{i}", f"blocks.{i}")
        for i in range(config["transformer"]["num_layers"])
    ]
    return [*points, Point("Transformer/encoder_norm", "norm")]


def _resnet_points(num_layers: tuple[int, ...]) -> list[Point]:
    backbone = "patch_embed.backbone"
    # Without stages timm's backbone *is* the stem. Its norm includes the activation, ours not.
    points = [Point("conv_root", f"{backbone}.{'stem.' if num_layers else ''}conv")]
    for i, units in enumerate(num_layers):
        points += [
            Point(f"block{i + 1}/unit{j + 1}", f"{backbone}.stages.{i}.blocks.{j}")
            for j in range(units)
        ]
    return points


def _mixer_points(config: Mapping[str, Any]) -> list[Point]:
    blocks = [Point(f"MixerBlock_{i}", f"blocks.{i}") for i in range(config["num_blocks"])]
    return [Point("stem", "stem"), *blocks, Point("pre_head_layer_norm", "norm")]


def _vit_differences(config: Mapping[str, Any]) -> list[Difference]:
    return [_GELU] + ([_GROUP_NORM, _STD_CONV] if config.get("resnet") is not None else [])


FAMILIES = {
    "vit": Family(_vit_points, _vit_differences),
    "mixer": Family(_mixer_points, lambda config: [_GELU]),
}


def points(config: Mapping[str, Any], module: "torch.nn.Module") -> list[Point]:
    """Where the two sides can be compared on the way, first to last."""
    del module  # timm's names do not depend on its version
    if not is_google(config):
        return zoo_points(config)
    return FAMILIES[family_of(config)].points(config)


def differences(config: Mapping[str, Any]) -> list[Difference]:
    """What timm ships otherwise than we compute; nothing of the survey's families."""
    if not is_google(config):
        return []
    return FAMILIES[family_of(config)].differences(config)

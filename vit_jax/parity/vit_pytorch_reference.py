"""vit-pytorch as the reference of CCT, which it has as the official code; see `timm_reference`.

Checked against vit-pytorch 1.26.11. Its other models are architectures of their own.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.parity.references import Difference, Point, load, zoo_points

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "vit_pytorch")
LAYOUT = "vit_pytorch"


def build(
    config: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    *,
    num_classes: int,
    image_size: tuple[int, int],
    matched: bool,
) -> "torch.nn.Module":
    """`CCT` with these weights; arguments as timm's `build`."""
    import torch
    from vit_pytorch.cct import CCT

    del matched  # it computes what we do
    width, tokenizer, transformer = (config[k] for k in ("hidden_size", "tokenizer", "transformer"))
    size: Any = image_size  # annotated as a number
    module: Any = CCT(
        img_size=size,
        embedding_dim=width,
        n_conv_layers=tokenizer["num_layers"],
        kernel_size=tokenizer["kernel"],
        stride=tokenizer["stride"],
        padding=tokenizer["kernel"] // 2,
        num_layers=transformer["num_layers"],
        num_heads=transformer["num_heads"],
        mlp_ratio=transformer["mlp_dim"] / width,
        num_classes=num_classes or 1,
        positional_embedding="learnable",
    )
    if not num_classes:  # it would make a layer without outputs, and warn
        module.classifier.fc = torch.nn.Identity()
    load(module, state)
    return module.eval()


def logits_of(output: "torch.Tensor") -> "torch.Tensor":
    """The logits, or the features without classes."""
    return output


def points(config: Mapping[str, Any], module: "torch.nn.Module") -> list[Point]:
    """Where the two sides can be compared on the way, first to last."""
    del module
    return zoo_points(config)


def differences(config: Mapping[str, Any]) -> list[Difference]:
    """None."""
    del config
    return []

"""tlt, the official code of LV-ViT, as the reference; see `timm_reference`.

Checked against tlt 0.2.0. Its training needs NumPy 1: only its evaluation can be compared.
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.parity.references import Difference, Point, load, zoo_points

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "timm", "tlt")
LAYOUT = "tlt"

_STEMS = {64: "4_2", 128: "4_2_128"}


def build(
    config: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    *,
    num_classes: int,
    image_size: tuple[int, int],
    matched: bool,
) -> "torch.nn.Module":
    """`LV_ViT` with these weights; arguments as timm's `build`."""
    import torch

    with warnings.catch_warnings():  # it imports timm's modules where they were
        warnings.simplefilter("ignore", FutureWarning)
        from tlt.models.lvvit import LV_ViT

    del matched  # it computes what we do
    width, transformer = config["hidden_size"], config["transformer"]
    size: Any = image_size  # annotated as a number
    with torch.device("meta"):  # no time for random weights that are replaced at once
        module = LV_ViT(
            img_size=size,
            patch_size=config["patches"]["size"][0],
            num_classes=num_classes,
            embed_dim=width,
            depth=transformer["num_layers"],
            num_heads=transformer["num_heads"],
            mlp_ratio=transformer["mlp_dim"] / width,
            skip_lam=config["residual_divisor"],
            p_emb=_STEMS[config["stem_features"]],
            return_dense=True,
            drop_path_decay="fix",  # the linear one asks for numbers that 'meta' has not
        )
    load(module, state)
    return module.eval()


def logits_of(output: "torch.Tensor") -> "torch.Tensor":
    """The logits, or what evaluation makes of the features without classes."""
    return output


def points(config: Mapping[str, Any], module: "torch.nn.Module") -> list[Point]:
    """Where the two sides can be compared on the way, first to last."""
    del module
    return zoo_points(config)


def differences(config: Mapping[str, Any]) -> list[Difference]:
    """None."""
    del config
    return []

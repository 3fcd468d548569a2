"""PVT and CvT of Hugging Face transformers; see `hf_reference`, which looks families up here.

Checked against transformers 5.23.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families.registry import family_of
from vit_jax.parity.references import Difference, load

if TYPE_CHECKING:
    import torch

Config = Mapping[str, Any]


class Family(NamedTuple):
    """Attributes:
    construct: Config, number of classes and image size to a module with initial weights.
    match: Gives a module our numerics.
    differences: Config to what it ships otherwise than we compute.
    """

    construct: Callable[[Config, int, tuple[int, int]], "torch.nn.Module"]
    match: Callable[["torch.nn.Module", Config], None]
    differences: Callable[[Config], Sequence[Difference]]


def build(
    config: Config,
    state: Mapping[str, np.ndarray],
    *,
    num_classes: int,
    image_size: tuple[int, int],
    matched: bool,
) -> "torch.nn.Module":
    """The family's `…ForImageClassification`; arguments as timm's `build`.

    Raises:
      UserError: for sizes that Hugging Face's class cannot be built with.
    """
    import torch

    family = FAMILIES[family_of(config)]
    with torch.device("meta"):  # no time for random weights that are replaced at once
        module = family.construct(config, num_classes, image_size)
    load(module, state)
    if matched:
        family.match(module, config)
    return module.eval()


def differences(config: Config) -> list[Difference]:
    """What Hugging Face ships otherwise than we compute."""
    return list(FAMILIES[family_of(config)].differences(config))


def _pvt(config: Config, num_classes: int, image_size: tuple[int, int]) -> "torch.nn.Module":
    from transformers import PvtConfig, PvtForImageClassification

    # Its tables are for a square. It reads them as any map of as many cells.
    side = math.isqrt(math.prod(image_size))
    strides = [4 * 2**i for i in range(len(config["depths"]))]
    if any((side // s) ** 2 != math.prod(x // s for x in image_size) for s in strides):
        raise UserError(
            f"Hugging Face's PVT takes square images; got {image_size[0]}×{image_size[1]}"
        )
    theirs = PvtConfig(
        image_size=side,
        depths=tuple(config["depths"]),
        hidden_sizes=tuple(config["embed_dims"]),
        num_attention_heads=tuple(config["num_heads"]),
        mlp_ratios=tuple(config["mlp_ratios"]),
        sequence_reduction_ratios=tuple(config["sr_ratios"]),
        num_labels=num_classes,
    )
    return PvtForImageClassification(theirs)


def _official_eps(module: "torch.nn.Module", config: Config) -> None:
    import torch

    del config
    for name, part in module.named_modules():
        official = "patch_embeddings" in name or "attention.self" in name
        if official and isinstance(part, torch.nn.LayerNorm):
            part.eps = 1e-5


def _cvt(config: Config, num_classes: int, image_size: tuple[int, int]) -> "torch.nn.Module":
    from transformers import CvtConfig, CvtForImageClassification

    del image_size  # it takes any
    if any(depth <= i for i, depth in enumerate(config["depths"])):
        raise UserError(
            "Hugging Face's CvT cannot be built with fewer than 1, 2, 3 blocks a stage; got "
            f"{tuple(config['depths'])}"
        )
    fields: dict[str, Any] = {"num_labels": num_classes}  # a field of the class above it
    theirs = CvtConfig(
        depth=tuple(config["depths"]),
        embed_dim=tuple(config["embed_dims"]),
        num_heads=tuple(config["num_heads"]),
        mlp_ratio=(float(config.get("mlp_ratio", 4)),) * len(config["depths"]),
        drop_path_rate=(0.0,) * len(config["depths"]),
        **fields,
    )
    return CvtForImageClassification(theirs)


def _quick_gelu(config: Config) -> bool:
    return config.get("activation", "quick_gelu") == "quick_gelu"


def _official_gelu(module: "torch.nn.Module", config: Config) -> None:
    from transformers.activations import QuickGELUActivation

    for name, part in module.named_modules():
        if name.endswith(".intermediate") and _quick_gelu(config):
            part.activation = QuickGELUActivation()


_EPS = Difference("LayerNorm eps of patches and reductions", "1e-5", "1e-6")
_GELU = Difference("GELU", "x σ(1.702 x)", "erf form")

FAMILIES = {
    "pvt": Family(_pvt, _official_eps, lambda config: [_EPS]),
    "cvt": Family(_cvt, _official_gelu, lambda config: [_GELU] if _quick_gelu(config) else []),
}

"""tlt, the official code of LV-ViT (checked against tlt 0.2.0).

Its training needs NumPy 1: only its evaluation can be compared.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import names
from vit_jax.parity.references import Config, Library, load


def _construct(
    config: Config,
    state: Mapping[str, np.ndarray],
    num_classes: int,
    image_size: tuple[int, int],
    matched: bool,
) -> Any:
    import torch

    with warnings.catch_warnings():  # it imports timm's modules where they were
        warnings.simplefilter("ignore", FutureWarning)
        from tlt.models.lvvit import LV_ViT

    del matched  # it computes what we do
    args = names.layout_of(config, "tlt").build(config, num_classes, image_size)
    with torch.device("meta"):  # no time for random weights that are replaced at once
        module = LV_ViT(**args)
    load(module, state)
    return module


LIBRARY = Library("tlt", ("torch", "timm", "tlt"), _construct)

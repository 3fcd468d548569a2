"""vit-pytorch, whose CCT is that of the official code (checked against vit-pytorch 1.26.11).

Its other models are architectures of their own.
"""

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
    from vit_pytorch.cct import CCT

    del matched  # it computes what we do
    module: Any = CCT(
        **names.layout_of(config, "vit_pytorch").build(config, num_classes, image_size)
    )
    if not num_classes:  # it would make a layer without outputs, and warn
        module.classifier.fc = torch.nn.Identity()
    load(module, state)
    return module


LIBRARY = Library("vit_pytorch", ("torch", "vit_pytorch"), _construct)

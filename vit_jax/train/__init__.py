"""Training: `train_and_evaluate(config, workdir)`."""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike, *, allow_other_config: bool = False
) -> Mapping[str, Any]:
    """See `vit_jax.train.loop.train_and_evaluate`."""
    # The loop imports JAX and all that stands on it; naming this package does not.
    from vit_jax.train import loop

    return loop.train_and_evaluate(config, workdir, allow_other_config=allow_other_config)

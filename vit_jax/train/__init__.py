"""Training: `train_and_evaluate(config, workdir)`."""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike, *, allow_other_config: bool = False
) -> Mapping[str, Any]:
    """Trains and evaluates; `vit_jax.train.loop.train_and_evaluate` documents the arguments."""
    # The loop imports JAX, which takes seconds, so it is imported only when training starts.
    from vit_jax.train import loop

    return loop.train_and_evaluate(config, workdir, allow_other_config=allow_other_config)

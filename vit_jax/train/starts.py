"""Describes each start of a run in its `run.json`."""

import dataclasses
import os
from collections.abc import Sequence

from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.train import provenance, run_info
from vit_jax.train.run_info import RunInfo
from vit_jax.train.same_config import differences


def record(
    config: ConfigDict,
    class_names: Sequence[str],
    workdir: str | os.PathLike,
    *,
    step: int,
    mesh: Mesh,
) -> RunInfo:
    """Writes what the run is from now on, and adds this start to those before.

    A start at the last step trains nothing. The description then stays that of the run that was
    trained, whatever the config says now.

    Args:
      config: The complete config of this start.
      class_names: The names of the classes, in the order of the logits.
      workdir: The folder of the run.
      step: The number of updates done.
      mesh: The mesh of the run.

    Returns:
      What was written.

    Raises:
      UserError: if `run.json` cannot be written, or if one is there that is malformed.
    """
    now, before = RunInfo.of(config, list(class_names)), run_info.load_if_any(workdir)
    changed = {} if before is None else differences(before.config, now.config)
    start = provenance.start(step, changed, mesh)
    kept = now if before is None or step < config.total_steps else before
    starts = (*(before.starts if before else ()), start)
    info = dataclasses.replace(kept, starts=starts)
    run_info.save(info, workdir)
    return info

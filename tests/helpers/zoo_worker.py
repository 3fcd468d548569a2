"""Two updates of families given as arguments, on 4 devices; one line of JSON for each.

In bfloat16, the state split four ways. Not a test: `zoo/test_training.py` runs it, for the
devices of a process are set once.
"""

import collections
import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from zoo_shallow import shallow

from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh
from vit_jax.train import engine as engine_lib

CLASSES, DEVICES = 3, 4
# In pixels; convolutions of many channels in bfloat16 are loops, slower than compiling them.
SIZES = collections.defaultdict(lambda: 64, cct=32, vt=32, botnet_paper=32)


def run_of(family: str) -> ConfigDict:
    config = common.get_config().unlock()
    config.model = ConfigDict(shallow(family))
    config.pp.crop, config.dtype = SIZES[family], "bfloat16"
    config.batch, config.batch_eval, config.accum_steps = 2 * DEVICES, DEVICES, 1
    config.total_steps, config.warmup_steps, config.decay_type = 3, 0, "constant"
    config.optim, config.base_lr = "adamw", 1e-3
    config.mesh.data, config.mesh.fsdp = 1, DEVICES
    return config.lock()


def random_state(engine: Any, rng: np.random.Generator) -> Any:
    """A state before any step, laid out as the engine wants it; nothing is compiled for it."""
    empty = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(engine.init, jax.random.key(0))
    )
    params = jax.tree.map(
        lambda x: (0.1 * rng.standard_normal(x.shape)).astype(x.dtype), empty.params
    )
    return jax.device_put(dataclasses.replace(empty, params=params), engine.shardings)


def two_updates(family: str) -> dict[str, float | bool]:
    config, size = run_of(family), SIZES[family]
    engine = engine_lib.build(config, make_mesh(config.mesh), CLASSES)
    rng = np.random.default_rng(0)
    state = random_state(engine, rng)
    before = jax.device_get(state.variables)
    batch = {
        "image": rng.uniform(-1, 1, (config.batch, size, size, 3)).astype(np.float32),
        "label": np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, config.batch)],
    }
    batch = jax.device_put(batch, engine.batch)
    for _ in range(2):  # a head of zeros gives no gradient to what is before it
        state, scalars = engine.train_step(state, batch, jax.random.key(1))
    laid_out = jax.tree.map(
        lambda x, wanted: x.sharding.is_equivalent_to(wanted, x.ndim), state, engine.shardings
    )
    wide = [x for x in jax.tree.leaves(state.params) if x.size >= 2**12]
    split = [x for x in wide if not x.sharding.is_fully_replicated]
    after = jax.device_get(state.variables)
    leaves = jax.tree.leaves(after)
    return {
        "loss": float(scalars["loss"]),
        "finite": all(bool(np.isfinite(x).all()) for x in leaves),
        "float32": all(x.dtype == np.float32 for x in leaves),
        "laid_out": all(jax.tree.leaves(laid_out)),
        "share_split": sum(x.size for x in split) / max(1, sum(x.size for x in wide)),
        "share_moved": _moved(before["params"], after["params"]),
        "statistics_moved": _moved(before["batch_stats"], after["batch_stats"]),
    }


def _moved(before, after) -> float:
    """Share of the tensors that are not what they were; 1 of none."""
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    return float(np.mean(jax.tree.leaves(changed) or [1]))


if __name__ == "__main__":
    for family in sys.argv[1:]:
        print(json.dumps({"family": family, **two_updates(family)}), flush=True)

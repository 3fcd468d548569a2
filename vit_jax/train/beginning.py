"""The state with which a run begins or goes on."""

import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vit_jax import checkpoint
from vit_jax.checkpoint import names
from vit_jax.devices.sharding import place
from vit_jax.evaluate.kinds import Setting
from vit_jax.families import registry
from vit_jax.families.preprocess import sides
from vit_jax.train import checkpointing, lora
from vit_jax.train.branching import branch, parse, require_fit
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.engine import Engine
from vit_jax.train.health import History
from vit_jax.train.state import TrainState, started_from
from vit_jax.tree import flatten, unflatten


def first_state(
    setting: Setting,
    key: jax.Array,
    checkpoints: Checkpoints,
    pretrained: Mapping[str, os.PathLike],
) -> TrainState:
    """The state of the newest checkpoint; before the first one, another run's or a fresh one.

    Args:
      setting: The config, the computation and the classes of the run.
      key: The key from which fresh parameters are drawn.
      checkpoints: The checkpoints of the run.
      pretrained: The checkpoints from which a fresh state takes its parameters, as
        `pretrained.find_all` finds them.

    Raises:
      UserError: if a checkpoint does not fit the model; and as `branching.require_fit`.
    """
    config, engine = setting.config, setting.engine
    branches = checkpoints.latest_step is None and config.resume_from
    if branches:
        require_fit(config, setting.class_names)
    state = engine.init(key)
    if branches:
        return branch(config, like=state)
    if checkpoints.latest_step is None and pretrained:
        variables = _pretrained(pretrained, state, config, engine)
        state = started_from(state, variables, engine.tx)
    return checkpoints.restore(like=state)


def first_history(config: ConfigDict, checkpoints: Checkpoints) -> History:
    """What the run remembers of its course at the state that `first_state` returns."""
    if checkpoints.latest_step is None and config.resume_from:
        return History.of(checkpointing.history_of(*parse(config.resume_from)))
    return History.of(checkpoints.history())


def _pretrained(
    paths: Mapping[str, os.PathLike], state: TrainState, config: ConfigDict, engine: Engine
) -> dict[str, Any]:
    """The `variables` of a state, as far as possible read from checkpoints of their branches."""
    # The fresh parameters say which names and shapes are needed, and their head is used if the
    # checkpoint's head has another number of classes.
    fresh = multihost_utils.process_allgather(lora.without(state.variables), tiled=True)
    for where, path in paths.items():
        if not where:
            fresh = _read(path, fresh, config.model, config)
            continue
        tower = {kind: tree.get(where, {}) for kind, tree in fresh.items()}
        part = registry.get(config.model).parts(config.model.to_dict())[where]
        found = _read(path, tower, part, config)
        fresh = {
            kind: {**tree, where: found[kind]} if tower[kind] else tree
            for kind, tree in fresh.items()
        }
    found = flatten(place(fresh, engine.evaluated))
    return unflatten({**found, **lora.only(state.variables)})


def _read(path: os.PathLike, fresh: Any, model: Any, config: ConfigDict) -> dict[str, Any]:
    """The variables of a model from the checkpoint `path`."""
    height, width = sides(config.pp.crop)
    oblong = height != width  # of a square the parameters tell the grid
    return checkpoint.load_pretrained(
        pretrained_path=path,
        init_params=fresh,
        model_config=model,
        new_grid=names.grid_of(model, (height, width)) if oblong else None,
    )

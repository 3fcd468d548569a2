"""What a checkpoint of a run holds: its items, and how they are made of a state."""

from typing import Any

import jax
from absl import logging
from etils import epath

from vit_jax.errors import UserError
from vit_jax.train.state import TrainState
from vit_jax.variables import arrays, collections, named

PREFIX = "checkpoint"
ITEMS = ("params", "rest")  # of the state
# Where 'rest' holds the trained parameters, if 'params' holds others.
TRAINED = "trained_params"


def split(state: TrainState) -> tuple[Any, dict[str, Any]]:
    """The items 'params' and 'rest' of a checkpoint.

    'params' holds the average of the parameters if the run keeps one, and the merged parameters if
    it trains adapters; the trained parameters are then stored in 'rest'.
    """
    rest = {"step": state.step, "opt_state": state.opt_state}
    if state.evaluates_others:
        rest[TRAINED] = named(state.variables)
    return state.best_params, rest


def join(params: Any, rest: dict[str, Any], like: TrainState) -> TrainState:
    """The state whose items these are; `like` is a state of the same run."""
    statistics = arrays(like.batch_stats)
    best = collections(params, statistics)
    trained = collections(rest[TRAINED], statistics) if like.evaluates_others else best
    return TrainState(
        rest["step"],
        trained["params"],
        rest["opt_state"],
        ema=best if like.ema is not None else None,
        batch_stats=trained["batch_stats"],
        lora_scale=like.lora_scale,
    )


def refuse_files(path: epath.Path) -> None:
    """Raises UserError for checkpoints of the original code, which are files and not folders."""
    if not path.exists():
        return
    for entry in path.glob(f"{PREFIX}_*"):
        if entry.is_file():
            raise UserError(
                f"{entry} is a checkpoint file of the original code, which this run cannot "
                "continue; use another --workdir"
            )


def check_same(stored: Any, expected: Any, where: str) -> None:
    """Checks the leaves of an item that is stored at `where` against those that are expected.

    Raises:
      UserError: if names, shapes or types differ.
    """

    def facts(tree: Any) -> dict[str, tuple]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        # Orbax stores tuples and named tuples as lists and dicts: compare paths by their names.
        return {
            "/".join(
                str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path
            ): (
                tuple(leaf.shape),
                str(leaf.dtype),
            )
            for path, leaf in leaves
        }

    got, want = facts(stored), facts(expected)
    if got == want:
        return
    differing = sorted(got.items() ^ want.items())
    shown = ", ".join(
        f"{name} {'on disk' if got.get(name) == fact else 'expected'} {fact[1]}{list(fact[0])}"
        for name, fact in differing[:6]
    )
    logging.info("all differences: %s", differing)
    raise UserError(
        f"{where} holds another state than this config makes: {shown}"
        f"{', …' if len(differing) > 6 else ''}. Use the config of that run, or another --workdir."
    )

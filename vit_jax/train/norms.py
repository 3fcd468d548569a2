"""The norms by which one sees how a run fares, and whether an update is finite.

All of it is computed within the training step, on the devices. What is split over the devices is
summed where it lies, so that only scalars travel.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.checkpoint.stacked import stacked_names
from vit_jax.devices.sharding import MIN_SIZE
from vit_jax.train.state import TrainState
from vit_jax.tree import arrays

# The name of a block, which is the first part of a name that is called a block and has a number.
_BLOCK = re.compile(r"((?:[^/]+/)*?[A-Za-z]*[bB]lock_?\d+)/")


def scalars(
    loss: jax.Array, grads: Any, updates: Any, new: TrainState, by_block: bool = False
) -> dict[str, jax.Array]:
    """The norms of one update, and whether the state after it is sound.

    Args:
      loss: The loss, a scalar.
      grads: The gradient, before it is clipped.
      updates: What is added to the parameters.
      new: The state after the update.
      by_block: Whether there are also norms of each block, 'grad_norm/Transformer/encoderblock_0'.

    Returns:
      'grad_norm', 'update_norm', 'param_norm': L2 norms, float32. 'finite': whether the loss, these
      norms and the running statistics are finite. A norm is infinite also if finite numbers are so
      large that their squares overflow in float32, and no run recovers from that.
    """
    trees = {"grad_norm": grads, "update_norm": updates, "param_norm": new.params}
    norms = {name: norm(tree) for name, tree in trees.items()}
    watched = [loss, *norms.values(), norm(new.batch_stats)]
    finite = jnp.isfinite(jnp.stack([jnp.asarray(x, jnp.float32) for x in watched])).all()
    blocks = {}
    for name, tree in trees.items() if by_block else ():
        blocks |= {f"{name}/{block}": norm for block, norm in block_norms(tree).items()}
    return {**norms, **blocks, "finite": finite}


def norm(tree: Any) -> jax.Array:
    """The L2 norm of all arrays of a tree together, a float32 scalar.

    Each array that is summed by itself is a program of its own to the compiler, of which a model
    has hundreds. Most are biases and scales, which are joined first: that halves what watching a
    run adds to the time of compiling its step.
    """
    leaves = [jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(tree)]
    small = [x.ravel() for x in leaves if x.size < MIN_SIZE]
    parts = [
        *(x for x in leaves if x.size >= MIN_SIZE),
        *([jnp.concatenate(small)] if small else []),
    ]
    return jnp.sqrt(sum((jnp.sum(jnp.square(x)) for x in parts), jnp.float32(0)))


def block_norms(tree: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The L2 norm of each block of a tree like the parameters, float32.

    A layer of stacked (scanned) blocks is a block, too. A parameter outside of blocks belongs to
    its module: 'embedding', 'Transformer/encoder_norm', 'head'.
    """
    leaves = {name: jnp.asarray(x, jnp.float32) for name, x in arrays(tree).items()}
    sums: dict[str, jax.Array] = {}
    for name, (where, layer) in stacked_names({n: x.shape for n, x in leaves.items()}).items():
        leaf = leaves[where] if layer is None else leaves[where][layer]
        block = m[1] if (m := _BLOCK.match(name)) else name.rpartition("/")[0] or name
        sums[block] = sums.get(block, 0.0) + jnp.sum(jnp.square(leaf))
    return {block: jnp.sqrt(total) for block, total in sums.items()}


def unless_ruined(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """The state after an update, or, if it is not finite, the state before it at the next step.

    A skipped update leaves parameters, running statistics, moving average and the optimizer's
    moments as they were, to the last bit. The step counts on, so that the next batch is another
    one, and so does the learning rate, which is a function of the step.
    """
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    kept = kept.replace(step=new.step)
    if not optax.tree.get_all_with_path(kept.opt_state, "count", _of_schedule):
        return kept
    return kept.replace(opt_state=optax.tree.set(kept.opt_state, _of_schedule, count=new.step))


def _of_schedule(path: tuple[Any, ...], value: Any) -> bool:
    """Whether this is the counter of a learning rate, and not that of a moment."""
    return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"

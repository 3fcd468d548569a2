"""The state that a run carries from step to step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from vit_jax.families.preprocess import sides
from vit_jax.train.lora import merged_in_place
from vit_jax.train.losses import init_head_bias
from vit_jax.train.optimizers import averaged, has_average
from vit_jax.variables import named


@struct.dataclass
class TrainState:
    """The whole state of a run; data order and random keys are functions of `step`.

    Attributes:
      step: The number of updates done, int32.
      params: The parameters of the model.
      opt_state: The state of the optimizer.
      ema: The moving average of the `variables`, or None.
      batch_stats: The running statistics of the model's BatchNorms; {} without BatchNorm.
      lora_scale: The factor of the adapters among the parameters, see `vit_jax.train.lora`; None
        without adapters.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any = None
    batch_stats: Any = struct.field(default_factory=dict)
    lora_scale: float | None = struct.field(pytree_node=False, default=None)

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that are trained, adapters among the parameters."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def raw_variables(self) -> dict[str, Any]:
        """The collections that the model is applied with, of which none is an average."""
        return {**self.variables, "params": self._merged(self.params)}

    def _merged(self, params: Any) -> Any:
        return params if self.lora_scale is None else merged_in_place(params, self.lora_scale)

    @property
    def best_variables(self) -> Any:
        """The variables that are evaluated: the moving average, or the optimizer's, if any."""
        if self.ema is not None:
            return self.ema
        return {**self.variables, "params": self._merged(averaged(self.opt_state, self.params))}

    @property
    def evaluates_others(self) -> bool:
        """Whether the variables that are evaluated are others than those that are trained."""
        return self.ema is not None or self.lora_scale is not None or has_average(self.opt_state)

    @property
    def best_params(self) -> dict[str, Any]:
        """The tree that checkpoints hold: `best_variables` as one tree, named as in files."""
        return named(self.best_variables)

    @property
    def trained(self) -> dict[str, Any]:
        """The result of a run: the best parameters, or both collections if it has statistics."""
        best = self.best_variables
        return best if best["batch_stats"] else best["params"]


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    image_size: int | tuple[int, int],
    channels: int = 3,
    beside: Mapping[str, tuple[int, ...]] | None = None,
    fresh: Callable[[Any, jax.Array], Any] | None = None,
    head_bias: float | None = None,
    ema: bool = False,
    lora_scale: float | None = None,
) -> TrainState:
    """A fresh state for images of `image_size`.

    Args:
      model: The linen module.
      tx: The optimizer.
      key: The key from which the parameters are drawn.
      image_size: The side of a square, or (height, width), in pixels.
      channels: The number of channels of an image.
      beside: What the model is called with by name beside an image, whole numbers: the shape of
        each for one image.
      fresh: `(parameters, key) -> parameters`, what else is done to the fresh parameters.
      head_bias: The bias of the head; None leaves it as the model initialises it.
      ema: Whether the state keeps a moving average.
      lora_scale: The factor of the adapters that `fresh` adds, if it does.

    Raises:
      UserError: if `head_bias` is given and the model has no 'head/bias'.
    """
    images = jnp.ones((1, *sides(image_size), channels), jnp.float32)
    others: dict[str, Any] = {
        name: jnp.ones((1, *shape), jnp.int32) for name, shape in (beside or {}).items()
    }
    variables = model.init(key, images, train=False, **others)
    params = variables["params"]
    if fresh is not None:
        params = fresh(params, jax.random.fold_in(key, 0))
    if head_bias is not None:
        params = init_head_bias(dict(params), head_bias)
    state = TrainState(
        jnp.zeros((), jnp.int32),
        params,
        tx.init(params),
        batch_stats=variables.get("batch_stats", {}),
        lora_scale=lora_scale,
    )
    return dataclasses.replace(state, ema=state.variables) if ema else state


def started_from(
    state: TrainState, variables: dict[str, Any], tx: optax.GradientTransformation
) -> TrainState:
    """A fresh state as it would be if the model had been initialised with `variables`.

    Args:
      state: The fresh state on the devices; the result lies as it does.
      variables: The collections of `state.variables`, for example those of a checkpoint.
      tx: The optimizer.
    """
    # An average also starts from these variables, but as a copy, because the step donates both and
    # one buffer cannot be donated twice.
    if state.ema is not None:
        state = dataclasses.replace(state, ema=jax.tree.map(jnp.copy, variables))
    if has_average(state.opt_state):
        layout = jax.tree.map(lambda x: x.sharding, state.opt_state)
        opt_state = jax.jit(tx.init, out_shardings=layout)(variables["params"])
        state = dataclasses.replace(state, opt_state=opt_state)
    return dataclasses.replace(state, **variables)

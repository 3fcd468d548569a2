"""What a run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from vit_jax.train.losses import init_head_bias
from vit_jax.variables import named


@struct.dataclass
class TrainState:
    """The whole state of a run; data order and random keys are functions of `step`.

    Attributes:
      step: Updates done, int32.
      params: Of the model.
      opt_state: Of the optimizer.
      ema: Moving average of the `variables`, or None.
      batch_stats: Running statistics of the model's BatchNorms; {} where it has none.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any = None
    batch_stats: Any = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def best_variables(self) -> Any:
        """What is evaluated: the average, where there is one."""
        return self.variables if self.ema is None else self.ema

    @property
    def best_params(self) -> dict[str, Any]:
        """What checkpoints hold: `best_variables` as one tree, under the names of files."""
        return named(self.best_variables)

    @property
    def trained(self) -> dict[str, Any]:
        """What a run returns: the best parameters, or with running statistics both collections."""
        best = self.best_variables
        return best if best["batch_stats"] else best["params"]


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    image_size: int,
    head_bias: float | None = None,
    ema: bool = False,
) -> TrainState:
    """A fresh state, for square RGB images of `image_size` pixels."""
    images = jnp.ones((1, image_size, image_size, 3), jnp.float32)
    variables = model.init(key, images, train=False)
    params = variables["params"]
    if head_bias is not None:
        params = init_head_bias(dict(params), head_bias)
    state = TrainState(
        jnp.zeros((), jnp.int32),
        params,
        tx.init(params),
        batch_stats=variables.get("batch_stats", {}),
    )
    return dataclasses.replace(state, ema=state.variables) if ema else state

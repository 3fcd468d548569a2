"""What a run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from vit_jax.train.losses import init_head_bias


@struct.dataclass
class TrainState:
    """The whole state of a run; data order and random keys are functions of `step`.

    Attributes:
      step: Updates done, int32.
      params: Of the model.
      opt_state: Of the optimizer.
      ema: Moving average of the parameters, or None.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any = None

    @property
    def best_params(self) -> Any:
        """What is evaluated and exported: the average, where there is one."""
        return self.params if self.ema is None else self.ema


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
    params = model.init(key, images, train=False)["params"]
    if head_bias is not None:
        params = init_head_bias(dict(params), head_bias)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), params if ema else None)

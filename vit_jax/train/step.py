"""One update, and one evaluation batch: pure functions, compiled by the loop."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.train.counts import counts
from vit_jax.train.losses import Loss, softmax_cross_entropy
from vit_jax.train.mixing import Mixing
from vit_jax.train.state import TrainState

Batch = Mapping[str, jax.Array]
NO_MIXING = Mixing()
# Parameters -> (loss, gradient).
LossAndGrad = Callable[[Any], tuple[jax.Array, Any]]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    accum_steps: int = 1,
    loss: Loss = softmax_cross_entropy,
    mixing: Mixing = NO_MIXING,
    trained: Callable[[Any], Any] = lambda params: params,
    sharpen: Callable[[LossAndGrad, Any, jax.Array], tuple[jax.Array, Any]] | None = None,
    average: Callable[[Any, Any, jax.Array], Any] | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `step(state, batch, key) -> (state, {'loss': scalar})`.

    `batch` holds 'image' [N, H, W, 3] and 'label' [N, K]. `key` is the run's key; what is drawn
    in a step comes from `fold_in(key, step)`, so that a resumed run draws the same.

    Args:
      accum_steps: Parts into which the batch is cut.
      loss: One number an example.
      mixing: Mixes examples and labels before the forward pass.
      trained: Puts a stop to gradients of parameters that are frozen.
      sharpen: Given `(loss_and_grad, params, step)`, the loss and the gradient to follow (SAM).
      average: Given `(ema, params, step)`, the new moving average.
    """

    def loss_fn(params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        logits: Any = model.apply(
            {"params": trained(params)}, batch["image"], train=True, rngs={"dropout": key}
        )
        return loss(logits, batch["label"]).mean()

    def step(state: TrainState, batch: Batch, key: jax.Array):
        mixing_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = mixing(mixing_key, batch)

        def loss_and_grad(params: Any) -> tuple[jax.Array, Any]:
            grad_fn = jax.value_and_grad(loss_fn)
            return accumulate(grad_fn, params, batch, dropout_key, accum_steps)

        if sharpen is None:
            value, grads = loss_and_grad(state.params)
        else:
            value, grads = sharpen(loss_and_grad, state.params, state.step)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = average(state.ema, params, state.step) if average else None
        return TrainState(state.step + 1, params, opt_state, ema), {"loss": value}

    return step


def accumulate(
    loss_and_grad: Callable[[Any, Batch, jax.Array], tuple[jax.Array, Any]],
    params: Any,
    batch: Batch,
    key: jax.Array,
    accum_steps: int,
) -> tuple[jax.Array, Any]:
    """Mean loss and gradient over `accum_steps` parts of the batch, one after the other.

    Part i holds the examples i, i + accum_steps, …: where the batch is split over devices, each
    of them takes its share of every part and no example moves.

    Raises:
      UserError: when the parts would not be equal.
    """
    if accum_steps <= 1:
        return loss_and_grad(params, batch, key)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % accum_steps:
        raise UserError(f"accum_steps={accum_steps} does not divide the batch of {size}")

    def parts(x: jax.Array) -> jax.Array:
        return x.reshape(size // accum_steps, accum_steps, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        batch, i = part
        return jax.tree.map(
            jnp.add, total, loss_and_grad(params, batch, jax.random.fold_in(key, i))
        ), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    total, _ = jax.lax.scan(add, zeros, (jax.tree.map(parts, batch), jnp.arange(accum_steps)))
    return jax.tree.map(lambda x: x / accum_steps, total)


def make_eval_step(
    model: nn.Module, *, loss: Loss = softmax_cross_entropy
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Returns `evaluate(params, batch) -> sums`, where 'mask' [N] leaves padding out.

    The sums: 'examples', their 'loss', and those of `counts`.
    """

    def evaluate(params: Any, batch: Batch) -> dict[str, jax.Array]:
        logits: Any = model.apply({"params": params}, batch["image"], train=False)
        labels, mask = batch["label"], batch["mask"]
        return {
            **counts(logits, labels, mask),
            "examples": mask.sum(),
            # A padded example may be anything, NaN too: leave it out before multiplying.
            "loss": jnp.where(mask > 0, loss(logits, labels), 0.0).sum(),
        }

    return evaluate

"""One update, and one evaluation batch: pure functions, compiled by the loop."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.evaluate.top_k import counts
from vit_jax.layers.head import HEADS, heads_of
from vit_jax.train import batch_parts
from vit_jax.train.losses import Loss, of_heads, softmax_cross_entropy
from vit_jax.train.mixing import Mixing
from vit_jax.train.sam import LossAndGrad
from vit_jax.train.state import TrainState

Batch = Mapping[str, jax.Array]
# (What each head of the model gives, batch) -> one number an example.
Objective = Callable[[tuple[jax.Array, ...], Batch], jax.Array]
NO_MIXING, SOFTMAX = Mixing(), of_heads(softmax_cross_entropy)
# (Parameters, running statistics, batch, key) -> ((loss, new statistics), gradient).
Gradient = Callable[[Any, Any, Batch, jax.Array], tuple[tuple[jax.Array, Any], Any]]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    accum_steps: int = 1,
    objective: Objective = SOFTMAX,
    mixing: Mixing = NO_MIXING,
    teach: Callable[[Any, jax.Array], jax.Array] | None = None,
    trained: Callable[[Any], Any] = lambda params: params,
    sharpen: Callable[[LossAndGrad, Any, jax.Array], tuple[Any, Any]] | None = None,
    sharpen_parts: bool = False,
    average: Callable[[Any, Any, jax.Array], Any] | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `step(state, batch, key, teacher=None) -> (state, {'loss': scalar})`.

    `batch` holds 'image' [N, H, W, 3] and 'label' [N, K]. `key` is the run's key; what is drawn
    in a step comes from `fold_in(key, step)`, so that a resumed run draws the same. `teacher` are
    the variables of `teach`.

    Args:
      accum_steps: Parts into which the batch is cut.
      objective: Given (what each head of the model gives, batch), one number an example.
      mixing: Mixes examples and labels before the forward pass.
      teach: Given `(teacher, images)`, logits of the mixed images: 'teacher' of the batch.
      trained: Puts a stop to gradients of parameters that are frozen.
      sharpen: Given `(loss_and_grad, params, step)`, the loss and the gradient to follow (SAM).
      sharpen_parts: Sharpen each part of the batch on its own, instead of the whole.
      average: Given `(ema, variables, step)`, the new moving average.
    """

    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradient(
        params: Any, statistics: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        output, updated = model.apply(
            {"params": trained(params), "batch_stats": statistics},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats", HEADS],
        )
        heads = heads_of(output, updated)
        return objective(heads, batch).mean(), updated["batch_stats"]

    def step(state: TrainState, batch: Batch, key: jax.Array, teacher: Any = None):
        mixing_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = mixing(mixing_key, batch)
        if teach is not None:
            batch = {**batch, "teacher": teach(teacher, batch["image"])}

        stages = [functools.partial(accumulated, accum_steps=accum_steps)]
        if sharpen is not None:
            stages.append(functools.partial(sharpened, sharpen=sharpen, step=state.step))
        whole = gradient
        for stage in reversed(stages) if sharpen_parts else stages:
            whole = stage(whole)

        (value, statistics), grads = whole(state.params, state.batch_stats, batch, dropout_key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, opt_state, batch_stats=statistics)
        if average is not None:
            ema = average(state.ema, new.variables, state.step)
            new = dataclasses.replace(new, ema=ema)
        return new, {"loss": value}

    return step


def accumulated(gradient: Gradient, *, accum_steps: int) -> Gradient:
    """Mean loss and gradient over `accum_steps` parts of the batch, one after the other.

    Running statistics are updated by each part in turn, as if the parts were batches: with
    accumulation they are of smaller batches, and have seen more of them.

    Raises:
      UserError: when the parts would not be equal.
    """
    if accum_steps <= 1:
        return gradient

    def of_parts(params: Any, statistics: Any, batch: Batch, key: jax.Array):
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % accum_steps:
            raise UserError(f"accum_steps={accum_steps} does not divide the batch of {size}")

        def add(carry: tuple[Any, Any], part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            (statistics, total), (batch, i) = carry, part
            (value, statistics), grads = gradient(
                params, statistics, batch, jax.random.fold_in(key, i)
            )
            return (statistics, jax.tree.map(jnp.add, total, (value, grads))), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        numbered = batch_parts.split(batch, accum_steps), jnp.arange(accum_steps)
        (statistics, total), _ = jax.lax.scan(add, (statistics, zeros), numbered)
        value, grads = jax.tree.map(lambda x: x / accum_steps, total)
        return (value, statistics), grads

    return of_parts


def sharpened(
    gradient: Gradient,
    *,
    sharpen: Callable[[LossAndGrad, Any, jax.Array], tuple[Any, Any]],
    step: jax.Array,
) -> Gradient:
    """The loss here, and the gradient that `sharpen` makes of it.

    Running statistics are those of the first pass, for they describe the parameters that are
    kept; those of the second belong to the point uphill, where the model never stays.
    """

    def of_batch(params: Any, statistics: Any, batch: Batch, key: jax.Array):
        return sharpen(lambda params: gradient(params, statistics, batch, key), params, step)

    return of_batch


def make_eval_step(
    model: nn.Module,
    *,
    loss: Loss = softmax_cross_entropy,
    shards: int = 1,
    rows: int | None = None,
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Returns `evaluate(variables, batch) -> figures`, where 'mask' [N] leaves padding out.

    The figures: 'losses' [N], 0 for padding; 'examples', and what `counts` counts, whole numbers.

    Another shape of a batch, or another number of devices, may give an example's logits another
    last digit: products are then cut into other blocks. So the model sees one shape only, `rows`
    examples a device, whatever the batch is.

    Args:
      shards: Devices that split the batch.
      rows: Examples that a device passes through the model at once; None for its whole share.
    """

    def of_part(variables: Any, part: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
        # A loop of one turn is no loop when compiled: keep its body apart all the same.
        image, labels, mask = jax.lax.optimization_barrier(
            (part["image"], part["label"], part["mask"])
        )
        logits: Any = model.apply(variables, image, train=False)
        # A padded example may be anything, NaN too: leave it out before multiplying.
        losses = jnp.where(mask > 0, loss(logits, labels), 0.0)
        figures = {**counts(logits, labels, mask), "examples": (mask > 0).sum()}
        return jax.lax.optimization_barrier((figures, losses))

    def evaluate(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        share = batch["mask"].shape[0] // shards
        at_once = rows or share
        count = -(-share // at_once)
        padded = batch_parts.split(batch_parts.pad(batch, shards, at_once), count)
        figures, losses = jax.lax.map(functools.partial(of_part, variables), padded)
        losses = batch_parts.join(losses).reshape(shards, -1)[:, :share].reshape(-1)
        return {**jax.tree.map(lambda x: x.sum(), figures), "losses": losses}

    return evaluate

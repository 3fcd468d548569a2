"""One training update and one evaluation batch, as pure functions that the engine compiles."""

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
# (The outputs of the model's heads, batch) -> one number per example.
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

    `batch` holds 'image' [N, H, W, 3] and 'label' [N, K]. `key` is the run's key; a step draws its
    random numbers from `fold_in(key, step)`, so that a resumed run draws the same numbers.
    `teacher` holds the variables that `teach` needs.

    Args:
      model: The linen module.
      tx: The optimizer.
      accum_steps: The number of parts into which the batch is cut.
      objective: `(outputs of the heads, batch) -> [N]`, the loss of each example.
      mixing: The mixing of examples and labels before the forward pass.
      teach: `(teacher, images) -> logits`, called with the mixed images; the objective finds the
        logits in the batch as 'teacher'.
      trained: A function of the parameters that stops the gradients of frozen parameters.
      sharpen: `(loss_and_grad, params, step) -> (loss, gradient to follow)`, for SAM.
      sharpen_parts: Whether each part of the batch is sharpened separately.
      average: `(ema, variables, step) -> ema`, the new moving average.
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
    """A function that averages loss and gradient over `accum_steps` consecutive parts of the batch.

    Each part updates the running statistics in turn, as if it were a batch. With accumulation the
    statistics therefore come from more, smaller batches.

    Raises:
      UserError: from the returned function, if `accum_steps` does not divide the batch.
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
    """A function that returns the loss at the parameters and the gradient that `sharpen` makes.

    The running statistics come from the first pass, because they describe the parameters that the
    run keeps. The statistics of the second pass describe the perturbed parameters and are dropped.
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
    """Returns `evaluate(variables, batch) -> figures`; examples with 'mask' [N] 0 are padding.

    The figures are 'losses' [N], which are 0 for padding, and whole numbers: 'examples' and the
    counts of `evaluate.top_k.counts`.

    The shape of a batch and the number of devices decide how the compiler cuts matrix products into
    blocks, and may thereby change the last digit of an example's logits. The model therefore always
    sees the same shape, `rows` examples per device, whatever the size of the batch.

    Args:
      model: The linen module.
      loss: The loss of each example, from logits and labels.
      shards: The number of devices that split the batch.
      rows: The number of examples that a device passes through the model at once; None for all
        examples that the device holds.
    """

    def of_part(variables: Any, part: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
        # XLA inlines a loop of one iteration. The barriers keep the body from being fused with the
        # code around it, so that the figures stay equal to the last bit.
        image, labels, mask = jax.lax.optimization_barrier(
            (part["image"], part["label"], part["mask"])
        )
        logits: Any = model.apply(variables, image, train=False)
        # Padding may hold any values, also NaN, so it is selected away and not multiplied by 0.
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

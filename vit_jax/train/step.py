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
from vit_jax.layers.tokens import PATCHES, patches_of
from vit_jax.train import batch_parts, norms
from vit_jax.train.losses import Loss, of_heads, softmax_cross_entropy
from vit_jax.train.mixing import MIX, Mixing
from vit_jax.train.sam import LossAndGrad
from vit_jax.train.state import TrainState

Batch = Mapping[str, jax.Array]
# (The outputs of the model's heads, batch) -> one number per example; or several by name, of which
# 'loss' is learned and the means of the others are reported.
Objective = Callable[[tuple[jax.Array, ...], Batch], jax.Array | dict[str, jax.Array]]
# (Key, batch) -> (changed batch, keyword arguments of the model).
Draw = Callable[[jax.Array, Batch], tuple[Batch, dict[str, Any]]]
# ((Images, keyword arguments) -> what the model returns, batch) -> (whole numbers, losses [N]).
Judge = Callable[[Callable[..., Any], Batch], tuple[dict[str, jax.Array], jax.Array]]
NO_MIXING, SOFTMAX = Mixing(), of_heads(softmax_cross_entropy)
# What an evaluation reads of a batch.
EVALUATED = ("image", "label", "mask")
# (Parameters, running statistics, batch, key) -> ((loss, (new statistics, figures)), gradient).
Gradient = Callable[[Any, Any, Batch, jax.Array], tuple[tuple[jax.Array, tuple[Any, Any]], Any]]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    inputs: Callable[[Batch], Batch] = dict,
    accum_steps: int = 1,
    objective: Objective = SOFTMAX,
    mixing: Mixing = NO_MIXING,
    draw: Draw | None = None,
    teach: Callable[[Any, jax.Array], jax.Array] | None = None,
    trained: Callable[[Any], Any] = lambda params: params,
    sharpen: Callable[[LossAndGrad, Any, jax.Array], tuple[Any, Any]] | None = None,
    sharpen_parts: bool = False,
    average: Callable[[Any, Any, jax.Array], Any] | None = None,
    skip: bool = False,
    by_block: bool = False,
    exchange: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `step(state, batch, key, teacher=None) -> (state, scalars)`.

    The scalars are 'loss', what else the objective gives, and those of
    `vit_jax.train.norms.scalars`.

    `batch` holds what `inputs` makes 'image' [N, H, W, 3] and 'label' [N, K] of. `key` is the run's
    key; a step draws its random numbers from `fold_in(key, step)`, so that a resumed run draws the
    same numbers. `teacher` holds the variables that `teach` needs.

    Args:
      model: The linen module.
      tx: The optimizer.
      inputs: The last part of the batch's preparation, see `vit_jax.train.inputs`.
      accum_steps: The number of parts into which the batch is cut.
      objective: `(outputs of the heads, batch) -> [N]`, the loss of each example, or several
        numbers by name, see `Objective`. It finds in the batch the patches that a model shows, as
        `patches_of` names them.
      mixing: The mixing of examples and labels before the forward pass.
      draw: `(key, batch) -> (batch, arguments)`, what an objective draws for each of the parts:
        the batch that it makes of the part, and what the model is called with beside images.
      teach: `(teacher, images) -> logits`, called with the mixed images; the objective finds the
        logits in the batch as 'teacher'.
      trained: A function of the parameters that stops the gradients of frozen parameters, and
        gives those that the model is applied with.
      sharpen: `(loss_and_grad, params, step) -> (loss, gradient to follow)`, for SAM.
      sharpen_parts: Whether each part of the batch is sharpened separately.
      average: `(ema, variables, step) -> ema`, the new moving average.
      skip: Whether an update that is not finite is left out, as `norms.unless_ruined` says.
      by_block: Whether the scalars include the norms of each block.
      exchange: `key -> mix`, which draws the patches that the model exchanges between images
        (MixToken), anew for each part of the batch; the objective finds them in the batch as 'mix'.
    """

    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradient(
        params: Any, statistics: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        asked: dict[str, Any] = {}
        if draw is not None:
            batch, asked = draw(jax.random.fold_in(key, 0), batch)
        mix: dict[str, Any] = {}
        if exchange is not None:
            key, exchange_key = jax.random.split(key)
            mix = {MIX: exchange(exchange_key)}
        output, updated = model.apply(
            {"params": trained(params), "batch_stats": statistics},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats", HEADS, PATCHES],
            **asked,
            **mix,
        )
        heads, shown = heads_of(output, updated), patches_of(updated)
        found = objective(heads, {**batch, **mix, **shown})
        named = found if isinstance(found, dict) else {"loss": found}
        means = {name: numbers.mean() for name, numbers in named.items()}
        return means.pop("loss"), (updated["batch_stats"], means)

    def step(state: TrainState, batch: Batch, key: jax.Array, teacher: Any = None):
        mixing_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = mixing(mixing_key, inputs(batch))
        if teach is not None:
            batch = {**batch, "teacher": teach(teacher, batch["image"])}

        stages = [functools.partial(accumulated, accum_steps=accum_steps)]
        if sharpen is not None:
            stages.append(functools.partial(sharpened, sharpen=sharpen, step=state.step))
        whole = gradient
        for stage in reversed(stages) if sharpen_parts else stages:
            whole = stage(whole)

        (value, (statistics, figures)), grads = whole(
            state.params, state.batch_stats, batch, dropout_key
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, batch_stats=statistics
        )
        if average is not None:
            ema = average(state.ema, new.variables, state.step)
            new = dataclasses.replace(new, ema=ema)
        scalars = {"loss": value, **figures, **norms.scalars(value, grads, updates, new, by_block)}
        return norms.unless_ruined(scalars["finite"], new, state) if skip else new, scalars

    return step


def accumulated(gradient: Gradient, *, accum_steps: int) -> Gradient:
    """A function that averages loss, figures and gradient over `accum_steps` parts of the batch.

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

        def add(carry: tuple[Any, Any], part: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
            (statistics, total), (batch, i) = carry, part
            (value, (statistics, figures)), grads = gradient(
                params, statistics, batch, jax.random.fold_in(key, i)
            )
            return (statistics, jax.tree.map(jnp.add, total, (value, grads))), figures

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        numbered = batch_parts.split(batch, accum_steps), jnp.arange(accum_steps)
        (statistics, total), figures = jax.lax.scan(add, (statistics, zeros), numbered)
        value, grads = jax.tree.map(lambda x: x / accum_steps, total)
        return (value, (statistics, jax.tree.map(lambda x: x.mean(), figures))), grads

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


def judge_classes(loss: Loss) -> Judge:
    """A function that counts the images whose class is right; `loss` is of logits and labels."""

    def judge(forward: Callable[..., Any], batch: Batch):
        logits = forward(batch["image"])
        figures = counts(logits, batch["label"], batch["mask"])
        return figures, loss(logits, batch["label"])

    return judge


def make_eval_step(
    model: nn.Module,
    *,
    inputs: Callable[[Batch], Batch] = dict,
    judge: Judge | None = None,
    shards: int = 1,
    rows: int | None = None,
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Returns `evaluate(variables, batch) -> figures`; examples with 'mask' [N] 0 are padding.

    The figures are 'losses' [N], which are 0 for padding, and whole numbers: 'examples' and what
    `judge` counts.

    The model always sees the same shape, `rows` examples per device, see `batch_parts.in_parts`.

    Args:
      model: The linen module.
      inputs: The last part of the batch's preparation, see `vit_jax.train.inputs`.
      judge: `(forward, batch) -> (figures, losses)` of a part of a batch; None for that of classes
        with softmax. `forward` takes images and keyword arguments of the model.
      shards: The number of devices that split the batch.
      rows: The number of examples that a device passes through the model at once; None for all
        examples that the device holds.
    """

    judge = judge or judge_classes(softmax_cross_entropy)

    def of_part(variables: Any, part: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
        prepared = inputs(part)
        part = jax.lax.optimization_barrier({name: prepared[name] for name in EVALUATED})
        mask = part["mask"]
        figures, losses = judge(functools.partial(model.apply, variables, train=False), part)
        # Padding may hold any values, also NaN, so it is selected away and not multiplied by 0.
        losses = jnp.where(mask > 0, losses, 0.0)
        return {**figures, "examples": (mask > 0).sum()}, losses

    def evaluate(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        part = functools.partial(of_part, variables)
        used = {name: batch[name] for name in EVALUATED}
        figures, losses = batch_parts.in_parts(part, used, shards, rows)
        return {**jax.tree.map(lambda x: x.sum(), figures), "losses": losses}

    return evaluate

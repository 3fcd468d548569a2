"""Everything that a run compiles: model, optimizer, state layout and steps.

This module reads no data and no files. `vit_jax.train.loop` trains with it, and the commands that
plan or time a run build the same engine.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.devices.compiler_options import compiler_options
from vit_jax.devices.shard_sizes import unsplit
from vit_jax.devices.sharding import (
    batch_shards,
    check_batch,
    like_params,
    param_shardings,
    place,
    replicated,
    split_batch,
)
from vit_jax.errors import UserError
from vit_jax.layers.attention import choice
from vit_jax.layers.attention.choice import attending
from vit_jax.train import distill, health, lora, objectives, token_labels, trackers
from vit_jax.train.actions import profiling
from vit_jax.train.ema import ema_decay, update_ema
from vit_jax.train.inputs import Inputs
from vit_jax.train.mixing import Mixing
from vit_jax.train.optimizers import has_average, make_optimizer
from vit_jax.train.parameter_rules import freeze_rules, stop_frozen
from vit_jax.train.sam import LossAndGrad, gsam_rho, sam_gradient
from vit_jax.train.schedules import Schedule, create_learning_rate_schedule
from vit_jax.train.state import TrainState, init_state
from vit_jax.train.step import make_eval_step, make_train_step
from vit_jax.train.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Engine:
    """A run's computation on one mesh.

    Attributes:
      mesh: The devices that the run uses.
      model: The linen module, with float32 parameters; it computes in `config.dtype`.
      tx: The optimizer.
      rate: The learning rate as a function of the update's number, counted from 0.
      shardings: A `TrainState` of shardings, in which the state lies before and after each step.
      batch: The sharding of a batch.
      init: `key -> state`, which makes a fresh state in `shardings`.
      train_step: `(state, batch, key) -> (state, scalars)`, which consumes the state it is given.
        A teacher's variables are already part of this function.
      eval_step: `(variables, batch) -> figures`, see `make_eval_step`; None for a task that is
        judged by pairs.
      task: What the run learns.
    """

    mesh: Mesh
    model: nn.Module
    tx: optax.GradientTransformation
    rate: Callable[[Any], jax.Array]
    shardings: TrainState
    batch: NamedSharding
    init: Callable[[jax.Array], TrainState]
    train_step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
    eval_step: Callable[[Any, Any], dict[str, jax.Array]] | None
    task: objectives.Task

    @property
    def evaluated(self) -> dict[str, Any]:
        """The shardings of the variables that are evaluated."""
        return lora.without(self.shardings.variables)


def build(
    config: ConfigDict, mesh: Mesh, num_classes: int, teacher: Teacher | None = None
) -> Engine:
    """Builds the computation that `config` describes, and compiles nothing yet.

    Args:
      config: A complete config, see `configs.common.with_defaults`.
      mesh: The mesh that `config.mesh` describes.
      num_classes: The number of classes of the dataset.
      teacher: The teacher of `config.distill`; only training uses it.

    Raises:
      UserError: for a setting that does not fit the model or the mesh.
    """
    check(config, mesh)
    task = objectives.get_task(config, num_classes)
    model = models.from_config(
        {**config.model, "dtype": jnp.dtype(config.dtype)}, num_classes=task.outputs
    )
    task.check(model)
    rate = create_learning_rate_schedule(
        config.total_steps,
        config.base_lr,
        config.decay_type,
        config.warmup_steps,
        timescale=config.lr_timescale,
        cooldown_steps=config.cooldown_steps,
        cooldown_type=config.cooldown_type,
    )
    tx = make_optimizer(config, rate)
    init = functools.partial(
        init_state,
        model,
        tx,
        image_size=config.pp.crop,
        channels=config.pp.channels,
        beside=task.beside,
        fresh=_fresh(config, task.fresh),
        head_bias=config.init_head_bias,
        ema=config.ema.decay > 0,
        lora_scale=lora.scale(config),
    )
    abstract = jax.eval_shape(init, jax.random.key(0))
    _check_average(abstract, config.optim)
    shardings = state_shardings(abstract, mesh, config)
    if problem := unsplit(abstract.params, shardings.params, mesh):
        logging.warning(problem)
    # The shardings of inputs and outputs are both given, because the compiler could otherwise
    # return the state in another layout than it received.
    full, split = replicated(mesh), split_batch(mesh)
    attention = attending(config.attend, mesh)
    options = compiler_options(mesh, gather_whole=config.gather_whole)
    inputs = Inputs.of(config.pp, num_classes)
    train_step = make_train_step(
        model,
        tx,
        inputs=lambda batch: task.targets(inputs(batch)),
        accum_steps=config.accum_steps,
        objective=task.loss,
        mixing=Mixing(**config.mixing),
        draw=task.draw,
        teach=None if teacher is None else teacher.logits,
        trained=_trained(config),
        sharpen=_sharpen(config, rate),
        sharpen_parts=config.sam.per_part,
        average=_average(config),
        skip=config.on_nonfinite == "skip",
        by_block=config.log_norms_every > 0,
        exchange=task.exchange,
    )
    lessons = () if teacher is None else (_placed(teacher.variables, mesh),)
    compiled = jax.jit(
        attention(train_step),
        in_shardings=(shardings, split, full, *jax.tree.map(lambda x: x.sharding, lessons)),
        out_shardings=(shardings, full),
        donate_argnums=0,
        compiler_options=options,
    )
    return Engine(
        mesh=mesh,
        model=model,
        tx=tx,
        rate=rate,
        shardings=shardings,
        batch=split,
        init=jax.jit(init, out_shardings=shardings),
        # Without a teacher this is the jitted function itself, which `vit-jax plan` lowers.
        train_step=functools.partial(_taught, compiled, lessons) if lessons else compiled,
        eval_step=None
        if task.judge is None
        else jax.jit(
            attention(
                make_eval_step(
                    model,
                    inputs=inputs,
                    judge=task.judge,
                    shards=batch_shards(mesh),
                    rows=config.batch_eval_device,
                )
            ),
            in_shardings=(lora.without(shardings.variables), split),
            out_shardings=full,
            compiler_options=options,
        ),
        task=task,
    )


def _placed(variables: Any, mesh: Mesh) -> Any:
    """A teacher's variables on the devices, with its parameters split by the default rules."""
    whole = jax.tree.map(lambda _: replicated(mesh), variables)
    return place(variables, {**whole, "params": param_shardings(variables["params"], mesh)})


def _taught(compiled: Any, lessons: tuple[Any, ...], state: TrainState, batch: Any, key: jax.Array):
    return compiled(state, batch, key, *lessons)


def _average(config: ConfigDict) -> Callable[..., Any] | None:
    if not config.ema.decay:
        return None

    def average(ema: Any, variables: Any, step: jax.Array) -> Any:
        # Running statistics are averaged too, although they are averages already, because the
        # statistics of the last parameters do not fit the averaged parameters. To first order the
        # statistics are linear in the parameters, so averaging both over the same steps fits.
        decay = ema_decay(step, config.ema.decay, warmup=config.ema.warmup)
        return update_ema(ema, variables, decay)

    return average


def _fresh(config: ConfigDict, fresh: Callable[[Any, jax.Array], Any] | None) -> Any:
    """What is done to fresh parameters: what the task asks for, and then adapters are added."""
    if not config.lora.rank:
        return fresh

    def with_adapters(params: Any, key: jax.Array) -> Any:
        params = params if fresh is None else fresh(params, key)
        key = jax.random.fold_in(key, 1)
        return lora.adapted(params, key, rank=config.lora.rank, targets=config.lora.targets)

    return with_adapters


def _trained(config: ConfigDict) -> Callable[[Any], Any]:
    """`parameters -> parameters` that the model is applied with, of which some have no gradient."""
    stopped = functools.partial(stop_frozen, rules=freeze_rules(config))
    factor = lora.scale(config)
    if factor is None:
        return stopped
    return lambda params: lora.merged(stopped(params), factor)


def _sharpen(config: ConfigDict, rate: Schedule) -> Callable[..., Any] | None:
    """The gradient of SAM, or of GSAM if `sam.alpha` or `sam.rho_min` is set; None without SAM."""
    rho, rho_min, alpha = config.sam.rho, config.sam.rho_min, config.sam.alpha
    if rho_min > rho:
        raise UserError(f"sam={dict(config.sam)}; expected rho_min <= rho")
    if not rho:
        return None

    def sharpen(loss_and_grad: LossAndGrad, params: Any, step: jax.Array) -> tuple[Any, Any]:
        radius = rho
        if alpha or rho_min:  # GSAM's radius follows the learning rate.
            radius = gsam_rho(rate(step), rate_max=config.base_lr, rho_max=rho, rho_min=rho_min)
        return sam_gradient(loss_and_grad, params, rho=radius, alpha=alpha)

    return sharpen


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError for settings that are unknown, or do not fit each other or `mesh`."""
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={config.dtype!r}; expected 'float32' or 'bfloat16'")
    choice.check(config.attend, mesh)
    check_batch("batch", config.batch, mesh, config.accum_steps)
    check_batch("batch_eval", config.batch_eval, mesh)
    profiling.check(config.profile)
    health.check(config)
    trackers.check(config.trackers)
    lora.check(config)
    distill.check(config.distill.kind, config.distill.alpha, config.distill.tau)
    token_labels.of_config(config)


def _check_average(abstract: TrainState, optim: str) -> None:
    """Raises UserError if an optimizer that averages the parameters meets what it cannot average.

    The running statistics are those of the parameters that are trained, not of their average.
    """
    if has_average(abstract.opt_state) and (abstract.ema is not None or abstract.batch_stats):
        raise UserError(
            f"optim={optim!r} evaluates its own average of the parameters, which "
            + (
                "a second moving average cannot replace: set ema.decay=0"
                if abstract.ema is not None
                else "the running statistics of this model's BatchNorms do not fit: use 'adamw'"
            )
        )


def state_shardings(abstract: TrainState, mesh: Mesh, config: ConfigDict) -> TrainState:
    """The sharding on `mesh` of every array of a state with the shapes of `abstract`.

    Raises:
      UserError: for sharding rules that do not fit the parameters, see `param_shardings`.
    """
    params = param_shardings(abstract.params, mesh, tuple(map(tuple, config.sharding_rules)))
    layout = TrainState(
        step=replicated(mesh),
        params=params,
        opt_state=like_params(abstract.opt_state, abstract.params, params, mesh),
        # Running statistics are small, and each comes from a sum over the whole batch, which every
        # device receives anyway.
        batch_stats=jax.tree.map(lambda _: replicated(mesh), abstract.batch_stats),
        lora_scale=abstract.lora_scale,
    )
    return layout if abstract.ema is None else dataclasses.replace(layout, ema=layout.variables)

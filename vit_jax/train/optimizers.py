"""Optimizers, composed of Optax's gradient transformations as a run's config says."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vit_jax.errors import UserError, suggest
from vit_jax.train import muon
from vit_jax.train.parameter_rules import (
    Rules,
    freeze_rules,
    layer_decay_rules,
    parse_rules,
    per_parameter,
    stack_depths,
)
from vit_jax.train.schedules import Schedule


def _sgd(config: ConfigDict, b1: float) -> optax.GradientTransformation:
    return optax.trace(b1, accumulator_dtype=config.optim_dtype)


def _adam(config: ConfigDict, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=config.optim_dtype)


def _lion(config: ConfigDict, b1: float, b2: float) -> optax.GradientTransformation:
    return optax.scale_by_lion(b1, b2, mu_dtype=config.optim_dtype)


def _muon(
    config: ConfigDict, b1: float, b2: float, eps: float, momentum: float
) -> optax.GradientTransformation:
    return muon.scale_by_muon_and_adam(
        config.muon_rules, _adam(config, b1, b2, eps), momentum, config.optim_dtype
    )


def _schedule_free_adam(
    config: ConfigDict, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """Adam without momentum, because averaging takes its place; `b1` is the average's."""
    if not b1:
        raise UserError(f"optim={config.optim!r} needs an optim_b1 above 0")
    return optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)


def _adafactor(
    config: ConfigDict, b1: float, b2: float, eps: float, clip: float | None
) -> optax.GradientTransformation:
    """Adafactor as Zhai et al. 2022 changed it (arXiv:2106.04560, section 3.4).

    The momentum b1 is kept in `optim_dtype`, and updates are not scaled by the size of the
    parameters. The decay of the second moment is 1 - (step + 1)^-0.8, but at most b2. For a kernel
    whose two largest sides are at least 32, only row and column means of the second moment are
    kept. `clip` bounds the RMS of each update.
    """

    def decay(step: Any, exponent: Any) -> jax.Array:
        return jnp.minimum(b2, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)

    return per_layer(
        optax.chain(
            optax.scale_by_factored_rms(
                min_dim_size_to_factor=32, epsilon=eps, decay_rate=0.8, decay_rate_fn=decay
            ),
            optax.clip_by_block_rms(clip) if clip else optax.identity(),
            optax.ema(b1, debias=False, accumulator_dtype=config.optim_dtype),
        )
    )


# For each optimizer, the function that makes its update direction from gradients, and the settings
# that the function takes, with their defaults.
_OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], dict[str, Any]]] = {
    "sgd": (_sgd, {"b1": 0.9}),
    "adamw": (_adam, {"b1": 0.9, "b2": 0.999, "eps": 1e-8}),
    "adafactor": (_adafactor, {"b1": 0.9, "b2": 0.999, "eps": 1e-30, "clip": None}),
    "lamb": (_adam, {"b1": 0.9, "b2": 0.999, "eps": 1e-6}),
    "lion": (_lion, {"b1": 0.9, "b2": 0.99}),
    "muon": (_muon, {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "momentum": 0.95}),
    "schedule_free_adamw": (_schedule_free_adam, {"b1": 0.9, "b2": 0.999, "eps": 1e-8}),
}
_SETTINGS = ("b1", "b2", "eps", "clip", "momentum")


def make_optimizer(config: ConfigDict, rate: Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, the optimizer's direction, decoupled decay and the learning rate.

    A step is θ ← θ - rate · m(θ) · (direction + weight_decay · d(θ) · θ), with the multipliers m
    and d of the rules; LAMB scales the sum in parentheses to the norm of θ (You et al. 2020,
    arXiv:1904.00962, algorithm 2). big_vision does not multiply its weight decay by the base
    learning rate; the same strength here is big_vision's value divided by the base learning rate.

    Frozen parameters stay the same to the last bit and do not count in the clipping. They have no
    optimizer state, unless they are stacked in one array with layers that train.

    Args:
      config: A complete config, of which the fields `optim…`, `weight_decay`, `grad_norm_clip`,
        `…_rules` and `layer_decay` are read; see `vit_jax.configs.common`.
      rate: The learning rate of each step, counted from 0.

    Raises:
      UserError: for an unknown optimizer, type or setting; from `init`, for rules that do not fit
        the parameters.
    """
    settings = _settings(config)
    direction = _OPTIMIZERS[config.optim][0](config, **settings)
    steps = [direction]
    if config.optim == "muon":
        steps.append(_with_rules(lambda u, *_: u, config.muon_rules, "muon_rules"))
    if config.weight_decay:
        steps.append(_with_rules(_decay_by(config.weight_decay), config.decay_rules, "decay_rules"))
    if config.optim == "lamb":
        steps.append(per_layer(optax.scale_by_trust_ratio()))
    steps.append(_with_rules(_multiply, config.lr_rules, "lr_rules"))
    if config.layer_decay != 1.0:
        rules = functools.partial(layer_decay_rules, config.layer_decay)
        steps.append(_with_rules(_multiply, rules, "layer_decay"))
    steps.append(optax.scale_by_learning_rate(rate))

    clip = [optax.clip_by_global_norm(config.grad_norm_clip)] if config.grad_norm_clip else []
    average = []
    if config.optim == "schedule_free_adamw":
        # Optax counts the steps of the average from 1, and those of the learning rate from 0.
        average = [
            optax.contrib.schedule_free(
                optax.identity(), lambda count: rate(count - 1), settings["b1"]
            )
        ]
    frozen = freeze_rules(config)
    if not any(value for _, value in parse_rules(frozen, "freeze_rules")):
        return optax.chain(*clip, optax.chain(*steps), *average)
    with_state = functools.partial(_with_state, frozen)
    steps[0] = optax.masked(direction, with_state)
    # Adding -0.0 leaves every bit of any float as it is; adding 0.0 would turn -0.0 into 0.0.
    stay = _where_frozen(frozen, -0.0)
    return optax.chain(
        _where_frozen(frozen, 0.0),
        *clip,
        optax.chain(*steps),
        stay,
        *(part for tx in average for part in (optax.masked(tx, with_state), stay)),
    )


def matrix_flops(config: ConfigDict, params: Any) -> float:
    """Floating point operations of the matrix products of one update of `params`, on one device.

    All optimizers but Muon make none, and cost a few operations for each parameter.
    """
    if config.optim != "muon":
        return 0.0
    return muon.newton_schulz_flops(params, config.muon_rules)


def has_average(opt_state: Any) -> bool:
    """Whether the optimizer keeps an average of the parameters, as schedule-free learning does."""
    return bool(_schedule_free_states(opt_state))


def averaged(opt_state: Any, params: Any) -> Any:
    """The average of the parameters in `opt_state`, and `params` if the optimizer keeps none.

    Training evaluates gradients at points y between the average x and the sequence z that the
    gradients move, y = b1 · x + (1 - b1) · z (Defazio et al. 2024, arXiv:2405.15682, equation 1).
    The state holds z, from which this computes x.
    """
    for state in _schedule_free_states(opt_state):
        return _evaluated(params, state.z, state.b1)
    return params


def _schedule_free_states(opt_state: Any) -> list[Any]:
    def found(x: Any) -> bool:
        return isinstance(x, optax.contrib.ScheduleFreeState)

    return [x for x in jax.tree.leaves(opt_state, is_leaf=found) if found(x)]


@jax.jit
def _evaluated(params: Any, z: Any, b1: Any) -> Any:
    def x(z: Any, y: jax.Array) -> jax.Array:
        if isinstance(z, optax.MaskedNode):
            return y  # It is frozen, and has no state.
        # What never moves is its own average to the last bit, also where the quotient would round.
        return jnp.where(y == z, y, (y - (1.0 - b1) * z) / b1)

    return jax.tree.map(x, z, params, is_leaf=lambda z: isinstance(z, optax.MaskedNode))


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies `tx` to each layer of stacked blocks as if the layer were a tensor of its own.

    Transformations that depend on a whole tensor (its norm, its two largest sides) need this, so
    that a model with scanned blocks trains like the same model without scan.
    """
    mapped = optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))

    def split(tree: Any) -> optax.GradientTransformation:
        depths = stack_depths(tree)
        if not any(jax.tree.leaves(depths)):
            return tx
        labels = jax.tree.map(lambda depth: f"stacked_{depth}" if depth else "single", depths)
        return optax.partition(
            {label: tx if label == "single" else mapped for label in jax.tree.leaves(labels)},
            labels,
        )

    return optax.GradientTransformation(
        lambda params: split(params).init(params),
        lambda updates, state, params=None: split(updates).update(updates, state, params),
    )


def _settings(config: ConfigDict) -> dict[str, Any]:
    """The settings of the optimizer, those that the config gives and the defaults of the others."""
    optim, dtype = config.optim, config.optim_dtype
    if optim not in _OPTIMIZERS:
        raise UserError(
            f"unknown optimizer {optim!r}.{suggest(optim, _OPTIMIZERS)} "
            f"Known: {', '.join(_OPTIMIZERS)}"
        )
    # Elsewhere JAX would make float64 float32 without a word.
    wide = ("float64",) if jax.dtypes.canonicalize_dtype("float64") == "float64" else ()
    if dtype not in ("float32", "bfloat16", *wide):
        raise UserError(f"optim_dtype={dtype!r}; expected 'float32' or 'bfloat16'")
    _, defaults = _OPTIMIZERS[optim]
    given = {k: config[f"optim_{k}"] for k in _SETTINGS if config[f"optim_{k}"] is not None}
    if unknown := given.keys() - defaults.keys():
        raise UserError(
            f"optim={optim!r} has no {', '.join(f'optim_{k}' for k in sorted(unknown))}; it has "
            f"{', '.join(f'optim_{k}' for k in defaults)}"
        )
    return {**defaults, **given}


def _decay_by(strength: float) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    return lambda u, p, d: u + _like(strength * d, u) * p.astype(u.dtype)


def _multiply(update: jax.Array, _: jax.Array, multiplier: Any) -> jax.Array:
    return _like(multiplier, update) * update


def _like(value: Any, x: jax.Array) -> jax.Array:
    return jnp.asarray(value, x.dtype)


def _with_rules(
    apply: Callable[[jax.Array, jax.Array, Any], jax.Array],
    rules: Rules[Any] | Callable[[Any], Rules[Any]],
    field: str,
) -> optax.GradientTransformation:
    """Replaces each update by `apply(update, parameter, value)` with the value of the first rule.

    `rules` may also be a function from the parameters to rules.
    """

    def values(tree: Any) -> Any:
        return per_parameter(rules(tree) if callable(rules) else rules, tree, field)

    def init(params: Any) -> optax.EmptyState:
        values(params)  # Raises for rules that do not fit, before any step.
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(apply, updates, params, values(updates)), state

    return optax.GradientTransformation(init, update)


def _where_frozen(rules: Rules[bool], value: float) -> optax.GradientTransformation:
    return _with_rules(
        lambda u, _, frozen: jnp.where(frozen, _like(value, u), u), rules, "freeze_rules"
    )


def _with_state(rules: Rules[bool], tree: Any) -> Any:
    """A tree that is False for the leaves that are frozen in all layers, and True elsewhere."""
    frozen = per_parameter(rules, tree, "freeze_rules")
    return jax.tree.map(lambda f: bool(np.ndim(f)) or not f, frozen)

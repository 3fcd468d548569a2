"""Sharpness-aware minimisation: the gradient at a point uphill, instead of here.

SAM: Foret et al. 2021, arXiv:2010.01412, equations 2 and 3. GSAM: Zhuang et al. 2022,
arXiv:2203.08065, algorithm 1.

The perturbation follows the gradient that `loss_and_grad` returns. Over the whole batch, it is
SAM with m = batch size. The papers perturb for the examples of each device on their own, and a
smaller m does better (m-sharpness, arXiv:2010.01412, section 4.1): `config.sam.per_part` does so
for each part of the accumulation, m = batch / accum_steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

LossAndGrad = Callable[[Any], tuple[Any, Any]]


def sam_gradient(
    loss_and_grad: LossAndGrad, params: Any, *, rho: Any, alpha: float = 0.0
) -> tuple[Any, Any]:
    """Loss at `params`, and the gradient to follow; `loss_and_grad` is called twice.

    Args:
      loss_and_grad: Parameters to (loss, gradient); the loss may be any tree, which is handed on.
        Both calls must draw the same dropout.
      params: Any tree.
      rho: L2 norm of the perturbation; 0 gives the plain gradient. May be traced.
      alpha: Of GSAM: takes this share of the clean gradient's part that is orthogonal to the
        perturbed one, so as to shrink the gap between the two losses. 0 is SAM.
    """
    loss, clean = loss_and_grad(params)
    step = rho / (optax.tree.norm(clean) + _TINY)
    uphill = jax.tree.map(lambda p, g: p + (step * g).astype(p.dtype), params, clean)
    _, perturbed = loss_and_grad(uphill)
    if not alpha:
        return loss, perturbed
    # In two divisions by the norm: its square would vanish in float32.
    norm = optax.tree.norm(perturbed) + _TINY
    along = optax.tree.vdot(clean, perturbed) / norm / norm
    # clean - along * perturbed is orthogonal to perturbed.
    return loss, jax.tree.map(lambda c, p: p - alpha * (c - along * p), clean, perturbed)


def gsam_rho(rate: Any, *, rate_max: float, rho_max: float, rho_min: float) -> Any:
    """A perturbation that shrinks with the learning rate, from `rho_max` to `rho_min` at rate 0."""
    return rho_min + (rho_max - rho_min) * rate / rate_max


# Keeps a zero gradient from becoming NaN.
_TINY = 1e-12

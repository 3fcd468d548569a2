"""Sharpness-aware minimisation: the gradient is taken at a nearby point of higher loss.

SAM: Foret et al. 2021, arXiv:2010.01412, equations 2 and 3. GSAM: Zhuang et al. 2022,
arXiv:2203.08065, algorithm 1.

The perturbation follows the gradient that `loss_and_grad` returns. If that is the gradient of the
whole batch, this is SAM with m = batch size. The papers perturb separately for the examples of each
device, and a smaller m does better (m-sharpness, arXiv:2010.01412, section 4.1). With
`config.sam.per_part`, every part of the accumulation is perturbed separately, so that
m = batch / accum_steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

LossAndGrad = Callable[[Any], tuple[Any, Any]]


def sam_gradient(
    loss_and_grad: LossAndGrad, params: Any, *, rho: Any, alpha: float = 0.0
) -> tuple[Any, Any]:
    """The loss at `params`, and the gradient to follow; `loss_and_grad` is called twice.

    Args:
      loss_and_grad: A function from parameters to (loss, gradient). The loss may be any tree; the
        first call's is returned. Both calls must use the same dropout masks.
      params: The parameters, a tree of arrays.
      rho: The L2 norm of the perturbation, which may be a traced scalar; 0 gives the plain
        gradient.
      alpha: The coefficient of GSAM, 0 for SAM. This share of the clean gradient's component that
        is orthogonal to the perturbed gradient is subtracted, which shrinks the gap between the
        losses at the two points.
    """
    loss, clean = loss_and_grad(params)
    step = rho / (optax.tree.norm(clean) + _TINY)
    uphill = jax.tree.map(lambda p, g: p + (step * g).astype(p.dtype), params, clean)
    _, perturbed = loss_and_grad(uphill)
    if not alpha:
        return loss, perturbed
    # The norm divides twice, because the square of a small norm would underflow in float32.
    norm = optax.tree.norm(perturbed) + _TINY
    along = optax.tree.vdot(clean, perturbed) / norm / norm
    # clean - along * perturbed is orthogonal to perturbed.
    return loss, jax.tree.map(lambda c, p: p - alpha * (c - along * p), clean, perturbed)


def gsam_rho(rate: Any, *, rate_max: float, rho_max: float, rho_min: float) -> Any:
    """The radius of GSAM, linear in the learning rate (arXiv:2203.08065, algorithm 1).

    It is `rho_max` at the rate `rate_max`, and `rho_min` at rate 0.
    """
    return rho_min + (rho_max - rho_min) * rate / rate_max


# Keeps a zero gradient from becoming NaN.
_TINY = 1e-12

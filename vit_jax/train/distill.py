"""Learning from a teacher's predictions: the losses of DeiT (arXiv:2012.12877, section 4)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError, suggest
from vit_jax.layers.precision import widened
from vit_jax.train.losses import Loss

Kind = Literal["none", "soft", "hard"]


def soft_distillation(logits: jax.Array, teacher: jax.Array, tau: float) -> jax.Array:
    """τ² / K · Σ p_t (log p_t - log p_s), p being softmax(logits / τ): [N, K] to [N].

    Equation 2, divided by the number of classes K as the published code does, and not the paper.
    """
    student, teacher = (jax.nn.log_softmax(widened(x) / tau) for x in (logits, teacher))
    return tau**2 * jnp.mean(jnp.exp(teacher) * (teacher - student), axis=-1)


def hard_distillation(logits: jax.Array, teacher: jax.Array) -> jax.Array:
    """Cross-entropy with the teacher's likeliest class as the label: [N, K] to [N]. Equation 3."""
    label = jnp.argmax(teacher, axis=-1, keepdims=True)
    return -jnp.take_along_axis(jax.nn.log_softmax(widened(logits)), label, axis=-1)[:, 0]


def distilled(
    loss: Loss, kind: Kind, alpha: float, tau: float
) -> Callable[[Sequence[jax.Array], Mapping[str, jax.Array]], jax.Array]:
    """(1 - α) loss(class logits, 'label') + α distillation(distillation logits, 'teacher').

    Args:
      loss: With the true labels.
      kind: 'soft' or 'hard'.
      alpha: Share of the teacher, 0 to 1.
      tau: Temperature of 'soft'.

    Returns:
      A function of (logits of each head, batch) to [N]. The heads are that of the classes and that
      of distillation; in a model with one head both losses are of the same logits.

    Raises:
      UserError: for settings out of range; from the function, for another number of heads.
    """
    check(kind, alpha, tau)

    def of_all(heads: Sequence[jax.Array], batch: Mapping[str, jax.Array]) -> jax.Array:
        if len(heads) > 2:
            raise UserError(
                f"distillation needs a model of one head, or of two (class, distillation); this "
                f"one has {len(heads)}"
            )
        logits, teacher = heads[-1], batch["teacher"]
        if kind == "soft":
            imitation = soft_distillation(logits, teacher, tau)
        else:
            imitation = hard_distillation(logits, teacher)
        return (1.0 - alpha) * loss(heads[0], batch["label"]) + alpha * imitation

    return of_all


def check(kind: str, alpha: float, tau: float) -> None:
    """Raises UserError for settings that mean nothing."""
    kinds = ("none", "soft", "hard")
    if kind not in kinds:
        raise UserError(f"distill.kind={kind!r}; expected one of {kinds}.{suggest(kind, kinds)}")
    if not 0 <= alpha <= 1 or not tau > 0:
        raise UserError(
            f"distill.alpha={alpha}, distill.tau={tau}; expected 0 <= alpha <= 1 and tau > 0"
        )

"""Learning from a teacher's predictions: the losses of DeiT (arXiv:2012.12877, section 4)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from vit_jax.configs import common
from vit_jax.errors import UserError, suggest
from vit_jax.layers.precision import widened
from vit_jax.train.losses import Loss

Kind = Literal["none", "soft", "hard"]


def soft_distillation(logits: jax.Array, teacher: jax.Array, tau: float) -> jax.Array:
    """τ² / K · Σ p_t (log p_t - log p_s) with p = softmax(logits / τ): logits [N, K] to [N].

    This is equation 2 divided by the number of classes K. The published code divides by K, and the
    paper does not.
    """
    student, teacher = (jax.nn.log_softmax(widened(x) / tau) for x in (logits, teacher))
    return tau**2 * jnp.mean(jnp.exp(teacher) * (teacher - student), axis=-1)


def hard_distillation(logits: jax.Array, teacher: jax.Array) -> jax.Array:
    """Cross-entropy whose label is the teacher's likeliest class (equation 3): [N, K] to [N]."""
    label = jnp.argmax(teacher, axis=-1, keepdims=True)
    return -jnp.take_along_axis(jax.nn.log_softmax(widened(logits)), label, axis=-1)[:, 0]


def distilled(
    loss: Loss, kind: Kind, alpha: float, tau: float
) -> Callable[[Sequence[jax.Array], Mapping[str, jax.Array]], jax.Array]:
    """(1 - α) loss(class logits, 'label') + α distillation(distillation logits, 'teacher').

    Args:
      loss: The loss with the true labels.
      kind: 'soft' or 'hard'.
      alpha: The share of the distillation loss in the sum, 0 to 1.
      tau: The temperature of 'soft'.

    Returns:
      A function of (logits of each head, batch) to [N]. The first head learns the labels and the
      second one the teacher's predictions; in a model with one head both losses use its logits.

    Raises:
      UserError: for settings out of range. The returned function raises it for more than two heads.
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
    """Raises UserError for an unknown `kind`, an `alpha` outside [0, 1] or a `tau` of 0 or less."""
    kinds = ("none", "soft", "hard")
    if kind not in kinds:
        raise UserError(f"distill.kind={kind!r}; expected one of {kinds}.{suggest(kind, kinds)}")
    common.check({"distill.alpha": alpha, "distill.tau": tau})

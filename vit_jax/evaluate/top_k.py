"""Counts the right predictions of one batch."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def counts(logits: Array, labels: Array, mask: Array) -> dict[str, jax.Array]:
    """The numbers of right predictions, as exact whole numbers.

    The same rule holds for one and for several labels: a prediction is right if it is any of the
    example's labels, and an example without labels does not count (ImageNet-ReaL, Beyer et al.
    2020, arXiv:2006.07159, section 3).

    Args:
      logits: Logits [N, K].
      labels: Labels [N, K], above 0 for each class that an example has.
      mask: [N], 0 for padding.

    Returns:
      int32 scalars: 'counted', the number of examples that count; 'correct', the number of those
      whose likeliest class is right; and for more than five classes 'correct_top5', the number of
      those for which one of the five likeliest classes is right.
    """
    real = (mask > 0) & (labels > 0).any(axis=-1)
    best = jax.lax.top_k(jnp.asarray(logits), 5 if logits.shape[-1] > 5 else 1)[1]
    right = jnp.take_along_axis(jnp.asarray(labels), best, axis=-1) > 0
    sums = {"counted": real.sum(), "correct": (right[:, 0] & real).sum()}
    if best.shape[-1] == 5:
        sums["correct_top5"] = (right.any(axis=-1) & real).sum()
    return sums

"""What an evaluation counts of one batch."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def counts(logits: Array, labels: Array, mask: Array) -> dict[str, jax.Array]:
    """How many predictions are right; exact whole numbers.

    One rule for single and several labels: a prediction is right if it is any of the example's
    labels, and an example without labels does not count (ImageNet-ReaL, Beyer et al. 2020,
    arXiv:2006.07159, section 3).

    Args:
      logits: [N, K].
      labels: [N, K], above 0 for each of an example's labels.
      mask: [N], 0 for padding.

    Returns:
      int32 scalars: 'counted', the examples that count; 'correct', whose likeliest class is right;
      for more than five classes 'correct_top5', where one of the five likeliest is.
    """
    real = (mask > 0) & (labels > 0).any(axis=-1)
    best = jax.lax.top_k(jnp.asarray(logits), 5 if logits.shape[-1] > 5 else 1)[1]
    right = jnp.take_along_axis(jnp.asarray(labels), best, axis=-1) > 0
    sums = {"counted": real.sum(), "correct": (right[:, 0] & real).sum()}
    if best.shape[-1] == 5:
        sums["correct_top5"] = (right.any(axis=-1) & real).sum()
    return sums

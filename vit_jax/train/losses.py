"""Losses: logits and targets to one number an example."""

import jax
import jax.numpy as jnp


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-Σ labels · log softmax(logits): [N, K] and [N, K] -> [N], in float32 or wider.

    `labels` are probabilities, one-hot or soft.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)

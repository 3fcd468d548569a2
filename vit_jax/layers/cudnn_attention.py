"""NVIDIA's flash attention, through JAX."""

import jax
import jax.numpy as jnp


def supports(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """Whether cuDNN takes these, shapes as of `cudnn_attention`, on any of its GPUs."""
    small = q.dtype == k.dtype == v.dtype and q.dtype in (jnp.bfloat16, jnp.float16)
    width = q.shape[-1]
    return small and q.ndim == 4 and v.shape[-1] == width and width % 8 == 0 and width <= 128


def cudnn_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, scale: float | None = None
) -> jax.Array:
    """Softmax attention.

    JAX refuses the gradient of odd lengths, for the sake of a bias and also where there is none. A
    class token makes lengths odd, so that those get one token more: a key that no query sees, and a
    query whose answer is dropped.

    Args:
      q: [N, Q, heads, d].
      k, v: [N, K, heads, d].
      scale: Of the scores; by default 1 / √d.

    Returns:
      [N, Q, heads, d].
    """
    length, keys = q.shape[1], k.shape[1]
    seen = None
    if length % 2 or keys % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
        seen = jnp.full(k.shape[0], keys, jnp.int32)
    y = jax.nn.dot_product_attention(
        q, k, v, scale=scale, key_value_seq_lengths=seen, implementation="cudnn"
    )
    return y[:, :length]

"""NVIDIA's flash attention, through JAX."""

import jax
import jax.numpy as jnp


def problem(q: jax.Array, k: jax.Array, v: jax.Array) -> str | None:
    """Why cuDNN does not take these on any of its GPUs, shapes as in `cudnn_attention`; or None."""
    types = sorted({str(x.dtype) for x in (q, k, v)})
    width = q.shape[-1]
    if len(types) > 1 or q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{' and '.join(types)}, not bfloat16 or float16"
    if v.shape[-1] != width:
        return f"values are {v.shape[-1]} wide and keys {width}"
    if width % 8 or width > 128:
        return f"heads are {width} wide, not a multiple of 8 up to 128"
    return None


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
      scale: The scores are multiplied by it; by default 1 / √d.

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

"""Attention: one function, and the multi-head layer around it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError
from vit_jax.layers.cudnn_attention import cudnn_attention
from vit_jax.layers.implementation import on_cpu, packed_over_mesh, takes_cudnn, takes_packed
from vit_jax.layers.packed_attention import Heads


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    on_scores: Callable[[jax.Array], jax.Array] | None = None,
    on_weights: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    The softmax runs in float32 or wider, whatever the type of the inputs. What computes it is
    chosen in `./implementation.py`.

    Args:
      q: Queries [N, …, Q, heads, d]; the axes of … are windows, each with its own attention.
      k: Keys [N, …, K, heads, d].
      v: Values [N, …, K, heads, e].
      bias: Added to the scaled scores, of a rank and shape that broadcasts to
        [N, …, heads, Q, K]: relative positions, masks.
      scale: Of the scores; by default 1 / √d.
      on_scores: Sees the scaled scores [N, …, heads, Q, K], float32 or wider, before `bias`, and
        returns those that are used: heads that talk.
      on_weights: Sees the weights [N, …, heads, Q, K] and returns those that are used: the one
        place for dropout and for looking at attention.

    Returns:
      [N, …, Q, heads, e] in the type of `v`.
    """
    watched = on_scores is not None or on_weights is not None
    if bias is None and not watched and takes_cudnn(q, k, v):
        return cudnn_attention(q, k, v, scale)
    # The original scales the queries, not the scores: the same number, rounded differently.
    q = q / jnp.sqrt(q.shape[-1]).astype(q.dtype) if scale is None else q * scale
    heads_first = on_cpu()
    if heads_first:  # A third less time there; the products' batch axes lead.
        q, k, v = (x.swapaxes(-3, -2) for x in (q, k, v))
        scores = jnp.einsum("...hqd,...hkd->...hqk", q, k)
    else:
        scores = jnp.einsum("...qhd,...khd->...hqk", q, k)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if on_scores is not None:
        scores = on_scores(scores)
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    if heads_first and on_weights is None:
        return _averages(scores, v).swapaxes(-3, -2)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    if on_weights is not None:
        weights = on_weights(weights)
    if heads_first:
        return jnp.einsum("...hqk,...hke->...hqe", weights, v).swapaxes(-3, -2)
    return jnp.einsum("...hqk,...khe->...qhe", weights, v)


def _averages(scores: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax of `scores` times `v`, heads first, divided after the product.

    There are more scores than results: XLA's CPU programs write and read these once less so, in
    the backward pass too.
    """
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    sums = jnp.einsum("...hqk,...hke->...hqe", weights.astype(v.dtype), v)
    return (sums / weights.sum(-1, keepdims=True)).astype(v.dtype)


class MultiHeadDotProductAttention(nn.Module):
    """Attention with separate query, key and value projections: [N, …, T, D] -> the same shape.

    Kernels are `query|key|value/kernel` [D, heads, d] and `out/kernel` [heads, d, D], d = D/heads.
    The weights are sown as 'attention_weights' when the caller makes 'intermediates' mutable.

    Attributes:
      dropout_rate: On the attention weights.
      out_dropout_rate: On the output.
      qkv_bias: Whether query, key and value have a bias.
      kernel_init: Of all four kernels.
      scale: Of the scores; by default 1 / √d.

    Raises:
      UserError: when the heads do not divide the width.
    """

    num_heads: int
    dropout_rate: float = 0.0
    out_dropout_rate: float = 0.0
    qkv_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.xavier_uniform()
    scale: float | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        queries: jax.Array | None = None,
        values: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Args:
        x: What queries, keys and values are made of, [N, …, T, D].
        queries: [N, …, Q, D] ask in place of all of `x`: a class token, x[:, :1].
        values: [N, …, T, D] are answered in place of `x`.
        bias: As of `attend`.

        Returns:
          [N, …, Q, D].
        """
        width = x.shape[-1]
        if width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide the width {width}")
        heads = Heads(self.num_heads, width // self.num_heads, self.scale)
        hooks = {"on_scores": self._on_scores(), "on_weights": self._on_weights(train)}
        plain = all(y is None for y in (queries, values, bias, *hooks.values()))
        if plain and not self.is_initializing() and takes_packed(x, heads, self.dtype):
            y = self._packed(x, heads)
        else:
            y = self._separate(x, queries, values, heads, bias=bias, **hooks)
        return nn.Dropout(self.out_dropout_rate, name="Dropout_0")(y, deterministic=not train)

    def _separate(self, x, queries, values, heads: Heads, **how) -> jax.Array:
        project = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        inputs = {
            "query": x if queries is None else queries,
            "key": x,
            "value": x if values is None else values,
        }
        q, k, v = (
            nn.DenseGeneral(
                (heads.count, heads.width), use_bias=self.qkv_bias, name=name, **project
            )(y)
            for name, y in inputs.items()
        )
        q, k, v = (checkpoint_name(y, "qkv") for y in (q, k, v))
        y = checkpoint_name(attend(q, k, v, scale=self.scale, **how), "attention")
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out", **project)(y)

    def _packed(self, x: jax.Array, heads: Heads) -> jax.Array:
        """The same, with one product for query, key and value and the kernel after it."""
        params = self.variables["params"]
        width, unused = x.shape[-1], heads.lanes - x.shape[-1]

        def fused(field: str, *shape: int) -> jax.Array:
            parts = [params[part][field].reshape(shape) for part in ("query", "key", "value")]
            pad = [(0, 0)] * (len(shape) - 1) + [(0, unused)]
            return jnp.concatenate([jnp.pad(part, pad) for part in parts], axis=-1)

        bias = fused("bias", width) if self.qkv_bias else jnp.zeros(3 * heads.lanes, x.dtype)
        x, kernel = promote_dtype(x, fused("kernel", width, width), dtype=self.dtype)
        y = packed_over_mesh(checkpoint_name(x @ kernel, "qkv"), bias, heads)
        out = params["out"]["kernel"].reshape(width, width)
        y, kernel, bias = promote_dtype(
            y, jnp.pad(out, ((0, unused), (0, 0))), params["out"]["bias"], dtype=self.dtype
        )
        return y @ kernel + bias.reshape(1, 1, -1)

    def _on_scores(self) -> Callable[[jax.Array], jax.Array] | None:
        return None

    def _on_weights(self, train: bool) -> Callable[[jax.Array], jax.Array] | None:
        drop = train and self.dropout_rate > 0
        look = self.is_mutable_collection("intermediates")
        if not (drop or look):
            return None
        dropout = nn.Dropout(self.dropout_rate, name="weights_dropout")

        def on_weights(weights: jax.Array) -> jax.Array:
            self.sow("intermediates", "attention_weights", weights)
            return dropout(weights, deterministic=not train)

        return on_weights

"""Attention: one function, and the multi-head layer around it.

The kernels are `./packed.py`, `./flash.py` and `./cudnn.py`, long rows that none of them takes go
through `./blocks.py`; `./choice.py` says which program is taken.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError
from vit_jax.layers.attention import blocks, choice
from vit_jax.layers.attention.cudnn import cudnn_attention
from vit_jax.layers.attention.packed import Heads
from vit_jax.layers.precision import widened
from vit_jax.layers.rotary import Rotary, rotate_halves

# Sees an array of scores or weights, and returns the one that is used.
Change = Callable[[jax.Array], jax.Array]
_PROJECTIONS = ("query", "key", "value")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    on_scores: Change | None = None,
    on_weights: Change | None = None,
    look: Callable[[jax.Array], Any] | None = None,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    The softmax runs in float32 or wider, whatever the type of the inputs. What computes it is
    chosen in `./choice.py`.

    Args:
      q: Queries [N, …, Q, heads, d]; the axes of … are windows, each with its own attention.
      k: Keys [N, …, K, heads, d].
      v: Values [N, …, K, heads, e].
      bias: Added to the scaled scores, of a rank and shape that broadcasts to
        [N, …, heads, Q, K]: relative positions, masks.
      scale: The scores are multiplied by it; by default 1 / √d.
      on_scores: Sees the scaled scores [N, …, heads, Q, K], float32 or wider, before `bias`, and
        returns those that are used: heads that talk.
      on_weights: Sees the weights [N, …, heads, Q, K] and returns those that are used: heads that
        talk, dropout.
      look: Called with the weights [N, …, heads, Q, K] if nothing changes them. The result is
        computed as it is without, so that looking at it changes nothing.

    Returns:
      [N, …, Q, heads, e] in the type of `v`.

    Raises:
      UserError: while it is traced, if a kernel was asked for by its name and cannot compute this.
    """
    if choice.takes_cudnn(q, k, v, _other_kind(bias, on_scores, on_weights)):
        if look is not None:
            look(_weights(_scores(q, k, scale), v.dtype))
        return cudnn_attention(q, k, v, scale)
    if choice.takes_flash(q, k, v, _other_kind(bias, on_scores, on_weights)):
        if look is not None:
            look(_weights(_scores(q, k, scale), v.dtype))
        return choice.flash_over_mesh(q, k, v, scale)
    if choice.takes_blocks(q, k, _not_in_blocks(on_scores, on_weights)):
        if look is not None:
            scores = _scores(q, k, scale)
            look(_weights(scores if bias is None else scores + bias.astype(scores.dtype), v.dtype))
        return blocks.blocked(
            lambda q, bias: plain_attention(q, k, v, bias=bias, scale=scale),
            q,
            bias,
            blocks.block_size(q.shape[-3], k.shape[-3], q.shape[-2]),
        )
    choice.takes_plain()
    return plain_attention(
        q, k, v, bias=bias, scale=scale, on_scores=on_scores, on_weights=on_weights, look=look
    )


def _not_in_blocks(on_scores: Any, on_weights: Any) -> str | None:
    """Why an attention cannot be computed a block of queries at a time, None if it can."""
    # Dropout would draw the same mask for every block; heads that talk could be cut, but no model
    # that has them has long rows.
    if on_scores is not None or on_weights is not None:
        return "its scores or weights are changed on the way"
    return None


def _other_kind(bias: Any, on_scores: Any, on_weights: Any) -> str | None:
    """Why no kernel can compute an attention, None if some can."""
    if on_scores is not None or on_weights is not None:
        return "its scores or weights are changed on the way"
    return None if bias is None else "its scores have a bias"


def plain_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    on_scores: Change | None = None,
    on_weights: Change | None = None,
    look: Callable[[jax.Array], Any] | None = None,
) -> jax.Array:
    """`attend` by operations that every device has; arguments and result are the same."""
    scores = _scores(q, k, scale)
    if on_scores is not None:
        scores = on_scores(scores)
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    if look is not None:
        look(_weights(scores, v.dtype))
    if choice.on_cpu():
        v = v.swapaxes(-3, -2)
        if on_weights is None:
            return _averages(scores, v).swapaxes(-3, -2)
        weights = on_weights(_weights(scores, v.dtype))
        return jnp.einsum("...hqk,...hke->...hqe", weights, v).swapaxes(-3, -2)
    weights = _weights(scores, v.dtype)
    if on_weights is not None:
        weights = on_weights(weights)
    return jnp.einsum("...hqk,...khe->...qhe", weights, v)


def _scores(q: jax.Array, k: jax.Array, scale: float | None) -> jax.Array:
    """Scaled scores [N, …, heads, Q, K], float32 or wider."""
    # The original scales the queries, not the scores: the same number, rounded differently.
    q = q / jnp.sqrt(q.shape[-1]).astype(q.dtype) if scale is None else q * scale
    if choice.on_cpu():
        # Products whose batch axes lead take a third less time there.
        q, k = (x.swapaxes(-3, -2) for x in (q, k))
        scores = jnp.einsum("...hqd,...hkd->...hqk", q, k)
    else:
        scores = jnp.einsum("...qhd,...khd->...hqk", q, k)
    return widened(scores)


def _weights(scores: jax.Array, dtype: Any) -> jax.Array:
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


def _averages(scores: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax of `scores` times `v`, heads first, divided after the product.

    There are more scores than results: XLA's CPU programs write and read these once less so, in
    the backward pass too.
    """
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    sums = jnp.einsum("...hqk,...hke->...hqe", weights.astype(v.dtype), v)
    return (sums.astype(weights.dtype) / weights.sum(-1, keepdims=True)).astype(v.dtype)


def shown_by(module: nn.Module) -> Callable[[jax.Array], Any] | None:
    """What a module hands to `attend` as `look`, so that its weights can be looked at.

    They are sown as 'attention_weights' when the caller makes 'intermediates' mutable. None where
    nobody looks.
    """
    if not module.is_mutable_collection("intermediates"):
        return None
    return lambda weights: module.sow("intermediates", "attention_weights", weights)


class MultiHeadDotProductAttention(nn.Module):
    """Attention with separate query, key and value projections: [N, …, T, D] -> the same shape.

    Kernels are `query|key|value/kernel` [D, heads, d] and `out/kernel` [heads, d, D].
    The weights are sown as 'attention_weights' when the caller makes 'intermediates' mutable; that
    changes neither the result nor the program that computes it.

    Attributes:
      packable: Whether the packed kernel computes what the class does. It is not inherited: a
        subclass computes something else, unless it says so itself.
      dropout_rate: On the attention weights.
      out_dropout_rate: On the output.
      qkv_bias: Whether query, key and value have a bias, or the names of those that do.
      kernel_init: Initialises all four kernels.
      qkv_init: Initialises those of query, key and value, where they are drawn otherwise than the
        output's; None for no such difference.
      scale: The scores are multiplied by it; by default 1 / √d.
      head_dim: d, the width of a head; by default D / heads.
      rotate: How queries and keys are turned by `rotary`: `rotate_halves` or `rotate_pairs`.
      inner_norm: Called as `factory(name=…, dtype=…)(y)` with the joined heads [N, …, Q, heads · d]
        before the output layer; None for no norm.

    Raises:
      UserError: when the heads do not divide the width, or where `attend` raises.
    """

    packable = True

    num_heads: int
    dropout_rate: float = 0.0
    out_dropout_rate: float = 0.0
    qkv_bias: bool | tuple[str, ...] = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.xavier_uniform()
    qkv_init: Callable[..., jax.Array] | None = None
    scale: float | None = None
    head_dim: int | None = None
    rotate: Callable[[jax.Array, Rotary], jax.Array] = rotate_halves
    inner_norm: Callable[..., nn.Module] | None = None
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
        rotary: Rotary | None = None,
    ) -> jax.Array:
        """Args:
        x: What queries, keys and values are made of, [N, …, T, D].
        queries: [N, …, Q, D] ask in place of all of `x`: a class token, x[:, :1].
        values: [N, …, T, D] are answered in place of `x`.
        bias: As in `attend`.
        rotary: Angles by which the last queries and keys are turned; those before stay.

        Returns:
          [N, …, Q, D].
        """
        width = x.shape[-1]
        if self.head_dim is None and width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide the width {width}")
        heads = Heads(self.num_heads, self.head_dim or width // self.num_heads, self.scale)
        drops = train and self.dropout_rate > 0
        if drops and not self.is_initializing():
            choice.needs_weights(f"dropout of its weights at a rate of {self.dropout_rate}")
        other_kind = self._other_kind(queries, values, bias, rotary, drops)
        separate = {"queries": queries, "values": values, "bias": bias, "rotary": rotary}
        separate["train"] = train
        if self.is_initializing():
            y = self._separate(x, heads, plain_attention, **separate)
        elif choice.takes_packed(x, heads, self.dtype, other_kind):
            y = self._packed(x, heads)
            if self._watched():
                self._separate(x, heads, plain_attention, **separate)  # sows the weights
        else:
            y = self._separate(x, heads, attend, **separate)
        return nn.Dropout(self.out_dropout_rate, name="Dropout_0")(y, deterministic=not train)

    def _other_kind(
        self, queries: Any, values: Any, bias: Any, rotary: Any, drops: bool
    ) -> str | None:
        """Why the packed kernel does not compute this kind of attention, None if it does."""
        if not vars(type(self)).get("packable", False):
            return f"{type(self).__name__} is another kind of attention"
        if queries is not None or values is not None:
            return "queries or values are not made of what keys are made of"
        if bias is not None:
            return "its scores have a bias"
        if rotary is not None:
            return "its queries and keys are turned by their positions"
        if self.inner_norm is not None:
            return "its heads are normalised before the output layer"
        if self.head_dim is not None:
            return "its heads have a width of their own"
        return "its weights are dropped out" if drops else None

    def _separate(
        self,
        x: jax.Array,
        heads: Heads,
        attend: Callable[..., jax.Array],
        *,
        queries: jax.Array | None,
        values: jax.Array | None,
        bias: jax.Array | None,
        rotary: Rotary | None,
        train: bool,
    ) -> jax.Array:
        """With a product each for query, key and value, and `attend` after them."""
        project = {"kernel_init": self.qkv_init or self.kernel_init, "dtype": self.dtype}
        inputs = {
            "query": x if queries is None else queries,
            "key": x,
            "value": x if values is None else values,
        }
        q, k, v = (
            nn.DenseGeneral(
                (heads.count, heads.width), use_bias=self._biased(name), name=name, **project
            )(y)
            for name, y in inputs.items()
        )
        q, k, v = (checkpoint_name(y, "qkv") for y in (q, k, v))
        if rotary is not None:
            q, k = self.rotate(q, rotary), self.rotate(k, rotary)
        on_weights = self._on_weights(train)
        y = attend(
            q,
            k,
            v,
            bias=bias,
            scale=self.scale,
            on_scores=self._on_scores(),
            on_weights=on_weights,
            look=self._seen if on_weights is None and self._watched() else None,
        )
        y = checkpoint_name(y, "attention")
        if self.inner_norm is not None:
            norm = self.inner_norm(dtype=self.dtype, name="LayerNorm_0")
            y = norm(y.reshape(*y.shape[:-2], -1)).reshape(y.shape)
        project["kernel_init"] = self.kernel_init
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out", **project)(y)

    def _packed(self, x: jax.Array, heads: Heads) -> jax.Array:
        """The same, with one product for query, key and value and the kernel after it."""
        params = self.variables["params"]
        width, unused = x.shape[-1], heads.lanes - x.shape[-1]

        def fused(field: str, *shape: int) -> jax.Array:
            # A bias that is absent is one of zeros.
            none = jnp.zeros(shape, x.dtype)
            parts = [params[part].get(field, none).reshape(shape) for part in _PROJECTIONS]
            pad = [(0, 0)] * (len(shape) - 1) + [(0, unused)]
            return jnp.concatenate([jnp.pad(part, pad) for part in parts], axis=-1)

        bias = fused("bias", width)
        x, kernel = promote_dtype(x, fused("kernel", width, width), dtype=self.dtype)
        y = choice.packed_over_mesh(checkpoint_name(x @ kernel, "qkv"), bias, heads)
        out = params["out"]["kernel"].reshape(width, width)
        y, kernel, bias = promote_dtype(
            y, jnp.pad(out, ((0, unused), (0, 0))), params["out"]["bias"], dtype=self.dtype
        )
        return y @ kernel + bias.reshape(1, 1, -1)

    def _biased(self, projection: str) -> bool:
        return self.qkv_bias if isinstance(self.qkv_bias, bool) else projection in self.qkv_bias

    def _on_scores(self) -> Change | None:
        """Changes the scores, if the class does so."""
        return None

    def _on_weights(self, train: bool) -> Change | None:
        """Changes the weights, if the class or its dropout does so; shows them before dropout."""
        drop = self._drop(train)
        return None if drop is None else lambda weights: drop(self._seen(weights))

    def _drop(self, train: bool) -> Change | None:
        """Drops weights, where that is done."""
        if not (train and self.dropout_rate > 0):
            return None
        dropout = nn.Dropout(self.dropout_rate, name="weights_dropout")
        return lambda weights: dropout(weights, deterministic=False)

    def _watched(self) -> bool:
        return self.is_mutable_collection("intermediates")

    def _seen(self, weights: jax.Array) -> jax.Array:
        self.sow("intermediates", "attention_weights", weights)
        return weights

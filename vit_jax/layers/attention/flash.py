"""Attention of long rows on TPU, a block of queries at a time.

Scores and weights never leave the chip: the backward pass makes them again from the logarithm of
the softmax's sum (Dao et al. 2022, arXiv:2205.14135, section 3.1). All keys and values of a head
fit in on-chip memory at the lengths of images, so that a row of scores is there as a whole, and
only queries are done in blocks. Memory grows with the number of tokens, not with its square.

Heads of 32 or 64 lie side by side in a vector register of 128 lanes, others have their own.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.layers.attention import packed
from vit_jax.layers.attention.packed import LANES
from vit_jax.layers.precision import wide_type

_BLOCK = 128  # Queries.
_MOST_VMEM = 96 * 2**20
# Below it, plain operations are taken for what the packed kernel cannot compute.
FEWEST_KEYS = 512
# The compiler gives no estimate for a kernel, so that it carries one: cycles of v5e for each step,
# and for each vector register of a step's scores, forward and backward. Fitted to the
# schedules of two shapes that `benchmarks/kernel_schedule.py` prints.
_STEP_CYCLES, _FORWARD_CYCLES, _BACKWARD_CYCLES = 580, 3.96, 14.0
_LOG2_E = math.log2(math.e)
_SUMS = 8  # Rows of a block of sums, a whole vector register; the first ones are those of heads.


def problem(q: jax.Array, k: jax.Array, v: jax.Array) -> str | None:
    """Why the kernel does not take these, shapes as in `flash_attention`; None if it does."""
    if v.shape[-1] != q.shape[-1]:
        return f"values are {v.shape[-1]} wide and keys {q.shape[-1]}"
    if q.shape[-1] > LANES:
        return f"heads are {q.shape[-1]} wide, and {LANES} at most lie in a register"
    if _vmem_bytes(k.shape[1], q.dtype.itemsize) > _MOST_VMEM:
        return f"the keys of {k.shape[1]} tokens do not fit on the chip"
    return None


def _padded(width: int) -> int:
    """The lanes that a head gets."""
    return next(x for x in (32, 64, LANES) if width <= x)


def _vmem_bytes(keys: int, itemsize: int) -> int:
    """What a kernel asks for, generously."""
    # Keys, values and their gradients, while the next ones are on their way.
    rows = 2 * keys * LANES * (2 * itemsize + 2 * 4)
    # Scores, weights and their gradients of a head or two.
    scores = 12 * 4 * _BLOCK * -(-keys // LANES) * LANES
    return rows + scores + 8 * 2**20


def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention.

    Products take operands of the type of `q`, everything between them is float32 or wider.

    Args:
      q: [N, Q, heads, d].
      k, v: [N, K, heads, d].
      scale: The scores are multiplied by it; by default 1 / √d.
      interpret: Run it without a TPU, operation by operation.

    Returns:
      [N, Q, heads, d].
    """
    length, count, width = q.shape[1:]
    # Scaled while it is small and still wide, and for powers of 2, which are cheaper.
    factor = (width**-0.5 if scale is None else scale) * _LOG2_E
    q = (q.astype(wide_type(q.dtype)) * factor).astype(q.dtype)
    # Queries that are missing in the last block are zeros: their answers are left out, so that
    # their gradient is zero and no key sees them.
    q = _side_by_side(q, -length % _BLOCK)
    y: jax.Array = _flash(q, _side_by_side(k, 0), _side_by_side(v, 0), _padded(width), interpret)
    return y.reshape(*y.shape[:2], -1, _padded(width))[:, :length, :count, :width]


def _side_by_side(x: jax.Array, more: int) -> jax.Array:
    """[N, T + more, L] from [N, T, heads, d], filled up with zeros."""
    width = _padded(x.shape[-1])
    heads = -x.shape[2] % (LANES // width)
    x = jnp.pad(x, ((0, 0), (0, more), (0, heads), (0, width - x.shape[-1])))
    return x.reshape(*x.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _flash(q: jax.Array, k: jax.Array, v: jax.Array, width: int, interpret: bool) -> jax.Array:
    """The kernel over heads that lie side by side, [N, T, L] each."""
    return _forward(q, k, v, width, interpret)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, width: int, interpret: bool):
    grid = _Grid(q, k, width)
    sums = jax.ShapeDtypeStruct((q.shape[0], grid.windows * _SUMS, q.shape[1]), wide_type(q.dtype))
    return grid.call(
        _forward_kernel,
        [(q, grid.queries), (k, grid.keys), (v, grid.keys)],
        [(jax.ShapeDtypeStruct(q.shape, q.dtype), grid.queries), (sums, grid.sums)],
        products=2,
        cycles=_FORWARD_CYCLES,
        name="flash_attention_forward",
        interpret=interpret,
    )


def _forward_rule(q: jax.Array, k: jax.Array, v: jax.Array, width: int, interpret: bool):
    # Named for rematerialisation that keeps them: the backward pass then needs no forward pass.
    y, sums = (checkpoint_name(x, "attention") for x in _forward(q, k, v, width, interpret))
    return y, (q, k, v, sums)


def _backward_rule(width: int, interpret: bool, residuals, gradient: jax.Array):
    q, k, v, sums = residuals
    grid = _Grid(q, k, width)
    # Those of keys are summed over blocks of queries.
    of_keys = jax.ShapeDtypeStruct(k.shape, wide_type(k.dtype))
    d_q, d_k, d_v = grid.call(
        _backward_kernel,
        [
            (q, grid.queries),
            (k, grid.keys),
            (v, grid.keys),
            (sums, grid.sums),
            (gradient, grid.queries),
        ],
        [
            (jax.ShapeDtypeStruct(q.shape, q.dtype), grid.queries),
            (of_keys, grid.keys),
            (of_keys, grid.keys),
        ],
        products=5,
        cycles=_BACKWARD_CYCLES,
        name="flash_attention_backward",
        interpret=interpret,
    )
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype)


_flash.defvjp(_forward_rule, _backward_rule)


class _Grid:
    """Steps over images, windows of lanes and blocks of queries, these innermost."""

    def __init__(self, q: jax.Array, k: jax.Array, width: int):
        self._batch, self._length, lanes = q.shape
        self._keys, self._width, self._itemsize = k.shape[1], width, q.dtype.itemsize
        self.windows = lanes // LANES
        self.queries = pl.BlockSpec((None, _BLOCK, LANES), lambda n, w, i: (n, i, w))
        self.keys = pl.BlockSpec((None, self._keys, LANES), lambda n, w, i: (n, 0, w))
        self.sums = pl.BlockSpec((None, _SUMS, _BLOCK), lambda n, w, i: (n, w, i))

    def call(self, kernel, inputs, outputs, *, products, cycles, name, interpret):
        """Runs `kernel`; inputs and outputs come with their blocks."""
        heads = packed.Heads(LANES // self._width, self._width)
        steps = (self._batch, self.windows, self._length // _BLOCK)
        weights = math.prod(steps) * _BLOCK * self._keys * heads.count
        arrays = [x for x, _ in (*inputs, *outputs)]
        registers = heads.count * _BLOCK // 8 * -(-self._keys // LANES)
        step = _STEP_CYCLES + round(cycles * registers)
        return pl.pallas_call(
            functools.partial(kernel, heads=heads),
            grid=steps,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            out_shape=[x for x, _ in outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=_vmem_bytes(self._keys, self._itemsize),
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * weights * self._width,
                transcendentals=weights,
                bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
            ),
            metadata={"estimated_cycles": str(math.prod(steps) * step)},
            name=name,
            interpret=interpret,
        )(*(x for x, _ in inputs))


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, sums_ref, *, heads: packed.Heads):
    wide = sums_ref.dtype
    out, logs = packed.Lanes(heads), []
    for head in range(heads.count):
        scores = packed.dot(packed.only(q_ref[...], head, heads), k_ref[...], (1, 1), wide)
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp2(scores - largest)
        total = weights.sum(-1, keepdims=True)
        y = packed.dot(weights.astype(q_ref.dtype), v_ref[...], (1, 0), wide)
        out.put(head, y / total)
        logs.append(largest + jnp.log2(total))
    for first, tile in out.full():
        out_ref[:, first : first + LANES] = tile.astype(out_ref.dtype)
    sums_ref[...] = packed.as_rows(logs, _SUMS)


def _backward_kernel(
    q_ref, k_ref, v_ref, sums_ref, gradient_ref, d_q_ref, d_k_ref, d_v_ref, *, heads: packed.Heads
):
    """All of it transposed, [keys, queries]: what each query subtracts is then a row."""
    wide, narrow = sums_ref.dtype, q_ref.dtype

    @pl.when(pl.program_id(2) == 0)
    def _():
        d_k_ref[...], d_v_ref[...] = jnp.zeros_like(d_k_ref), jnp.zeros_like(d_v_ref)

    d_q = packed.Lanes(heads)
    for head in range(heads.count):
        # Zero outside of the head, so that products add to the head's own lanes of keys only.
        query = packed.only(q_ref[...], head, heads)
        gradient = packed.only(gradient_ref[...], head, heads)
        weights = jnp.exp2(packed.dot(k_ref[...], query, (1, 1), wide) - sums_ref[head : head + 1])
        d_v_ref[...] += packed.dot(weights.astype(narrow), gradient, (1, 0), wide)
        products = weights * packed.dot(v_ref[...], gradient, (1, 1), wide)
        # The queries carry log₂e.
        inner = products.sum(0, keepdims=True)
        d_scores = ((products - weights * inner) * (1 / _LOG2_E)).astype(narrow)
        d_k_ref[...] += packed.dot(d_scores, query, (1, 0), wide)
        d_q.put(head, packed.dot(d_scores, k_ref[...], (0, 0), wide))
    for first, tile in d_q.full():
        d_q_ref[:, first : first + LANES] = tile.astype(d_q_ref.dtype)

"""Self-attention on TPU over the fused projection, as it comes out of the matrix product.

One image a grid step, all heads of it unrolled. Scores and weights never leave the chip: the
backward pass makes them again from the logarithm of the softmax's sum (Dao et al. 2022,
arXiv:2205.14135, section 3.1). At the lengths of a Vision Transformer a whole row of scores fits in
on-chip memory, so that nothing is done in blocks, and the length needs no padding.

Heads lie side by side along the lanes and are never moved. A head's product takes the whole lanes
(128) that it touches, one side of it zero outside of the head: the matrix unit multiplies that many
at a time anyway. Any head width works so.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.layers.precision import wide_type

LANES = 128
# Bytes of on-chip memory that a kernel may ask for; a v5e or v6e core has 128 MiB. The compiler
# cannot use what a kernel takes for what it would keep there before and after it.
_MOST_VMEM = 96 * 2**20
_LOG2_E = math.log2(math.e)
# The compiler gives no estimate for a kernel, so that it carries one: cycles of v5e for each vector
# register of scores, and for each pass of a matrix unit (16 rows by a tile of 128 x 128). Fitted,
# within 5 %, to the schedules that `benchmarks/kernel_schedule.py` prints.
_FORWARD_CYCLES, _BACKWARD_CYCLES = (2.2, 4.1), (7.7, 2.1)


@dataclasses.dataclass(frozen=True)
class Heads:
    """How heads lie in the fused projection [B, T, 3L]: queries, keys, values, L lanes each.

    Attributes:
      count: Heads.
      width: d, of one head. Head h has the lanes h d to (h + 1) d; those after the last are 0.
      scale: The scores are multiplied by it; 1 / √d if None.
    """

    count: int
    width: int
    scale: float | None = None

    @property
    def lanes(self) -> int:
        """L, whole vector registers."""
        return -(-self.count * self.width // LANES) * LANES

    @property
    def score_scale(self) -> float:
        return self.width**-0.5 if self.scale is None else self.scale

    def window(self, head: int) -> tuple[int, int]:
        """(first, last + 1) of the whole registers that hold the head."""
        first, end = head * self.width, (head + 1) * self.width
        return first // LANES * LANES, -(-end // LANES) * LANES


def problem(length: int, heads: Heads) -> str | None:
    """Why the kernel does not take sequences of `length`; None if it does."""
    if heads.count > LANES:
        return f"{heads.count} heads, and {LANES} at most lie side by side"
    if _vmem_bytes(length, heads, itemsize=2) > _MOST_VMEM:
        return f"the scores of {length} tokens do not fit on the chip"
    return None


def _vmem_bytes(length: int, heads: Heads, itemsize: int) -> int:
    """What a kernel asks for, generously."""
    # An image's projection, output and their gradients, while the next one's are on their way.
    blocks = 2 * 8 * length * heads.lanes * itemsize
    # Scores, weights and their gradients of a head or two.
    scores = 16 * 4 * length * -(-length // LANES) * LANES
    return blocks + scores + 4 * 2**20


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def packed_attention(
    qkv: jax.Array, bias: jax.Array, heads: Heads, interpret: bool = False
) -> jax.Array:
    """Softmax attention, each token over all tokens of its image.

    Products take operands of the type of `qkv`, everything between them is float32 or wider.

    Args:
      qkv: The projection without its bias [B, T, 3L]; see `Heads`.
      bias: The bias of the projection, [3L].
      interpret: Run it without a TPU, operation by operation.

    Returns:
      [B, T, L], heads side by side, lanes after the last head 0.
    """
    return _forward(qkv, bias, heads, interpret)[0]


def _forward(qkv: jax.Array, bias: jax.Array, heads: Heads, interpret: bool):
    batch, length, _ = qkv.shape
    wide = wide_type(qkv.dtype)
    out = jax.ShapeDtypeStruct((batch, length, heads.lanes), qkv.dtype)
    sums = jax.ShapeDtypeStruct((batch, _rows(heads), length), wide)
    return _call(
        functools.partial(_forward_kernel, heads=heads),
        (qkv, _row(bias, wide)),
        (out, sums),
        products=2,
        cycles=_FORWARD_CYCLES,
        heads=heads,
        name="packed_attention_forward",
        interpret=interpret,
    )


def _forward_rule(qkv: jax.Array, bias: jax.Array, heads: Heads, interpret: bool):
    # Named for rematerialisation that keeps them: the backward pass then needs no forward pass.
    results = _forward(qkv, bias, heads, interpret)
    out, sums = (checkpoint_name(x, "attention") for x in results)
    return out, (qkv, bias, sums)


def _backward_rule(heads: Heads, interpret: bool, residuals, gradient: jax.Array):
    qkv, bias, sums = residuals
    wide = wide_type(qkv.dtype)
    d_qkv, d_bias = _call(
        functools.partial(_backward_kernel, heads=heads),
        (qkv, _row(bias, wide), sums, gradient),
        (
            jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
            jax.ShapeDtypeStruct((qkv.shape[0], 1, qkv.shape[2]), wide),
        ),
        products=5,
        cycles=_BACKWARD_CYCLES,
        heads=heads,
        name="packed_attention_backward",
        interpret=interpret,
    )
    return d_qkv, d_bias.sum((0, 1)).astype(bias.dtype)


packed_attention.defvjp(_forward_rule, _backward_rule)


def _row(bias: jax.Array, dtype) -> jax.Array:
    return bias.astype(dtype).reshape(1, -1)


def _rows(heads: Heads) -> int:
    """Heads, to whole vector registers of 8 rows."""
    return -(-heads.count // 8) * 8


def _call(
    kernel: Callable[..., None],
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    products: int,
    cycles: tuple[float, float],
    heads: Heads,
    name: str,
    interpret: bool,
):
    """Runs `kernel` on one image after the other; what has two axes goes to all of them."""
    batch, length, _ = inputs[0].shape

    def block(x) -> pl.BlockSpec:
        if len(x.shape) == 2:
            return pl.BlockSpec(x.shape, lambda image: (0, 0))
        return pl.BlockSpec((None, *x.shape[1:]), lambda image: (image, 0, 0))

    weights = batch * heads.count * length**2
    return pl.pallas_call(
        kernel,
        grid=(batch,),
        in_specs=[block(x) for x in inputs],
        out_specs=[block(x) for x in outputs],
        out_shape=list(outputs),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=_vmem_bytes(length, heads, inputs[0].dtype.itemsize),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * weights * heads.width,
            transcendentals=weights,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in (*inputs, *outputs)),
        ),
        metadata={"estimated_cycles": str(batch * _cycles(length, heads, products, cycles))},
        name=name,
        interpret=interpret,
    )(*inputs)


def _cycles(length: int, heads: Heads, products: int, cycles: tuple[float, float]) -> int:
    """The estimate for one image."""
    tiles = -(-length // LANES)
    registers = heads.count * -(-length // 8) * tiles
    windows = [heads.window(head) for head in range(heads.count)]
    passes = sum((end - first) // LANES for first, end in windows) * tiles * -(-length // 16)
    per_register, per_pass = cycles
    return round(per_register * registers + per_pass * products * passes)


class _Projection:
    """Parts of one image's queries, keys and values, with their bias."""

    def __init__(self, qkv_ref, bias_ref, heads: Heads):
        self._ref, self._bias, self._heads = qkv_ref, bias_ref, heads
        # Heads that share registers share what is loaded and rounded.
        self.keys = functools.cache(functools.partial(self._load, 1))
        self.values = functools.cache(functools.partial(self._load, 2))
        self._queries = functools.cache(functools.partial(self._load, 0))

    def _load(self, part: int, first: int, end: int) -> jax.Array:
        lanes = slice(part * self._heads.lanes + first, part * self._heads.lanes + end)
        x = self._ref[:, lanes].astype(self._bias.dtype) + self._bias[:, lanes]
        if part == 0:
            # Scaled while it is small and still wide, and for powers of 2, which are cheaper.
            x = x * (self._heads.score_scale * _LOG2_E)
        return x.astype(self._ref.dtype)

    def query(self, head: int) -> jax.Array:
        """The queries of one head, 0 on the lanes of others."""
        return only(self._queries(*self._heads.window(head)), head, self._heads)

    def queries(self, head: int) -> jax.Array:
        """The queries of all heads in the window of `head`."""
        return self._queries(*self._heads.window(head))


def _mask(head: int, heads: Heads) -> jax.Array:
    """Which lanes of its window are the head's, [1, window]."""
    first, end = heads.window(head)
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, end - first), 1) + first
    return (lane >= head * heads.width) & (lane < (head + 1) * heads.width)


def only(x: jax.Array, head: int, heads: Heads) -> jax.Array:
    return jnp.where(_mask(head, heads), x, jnp.zeros_like(x))


class Lanes:
    """[T, L] put together from one head's part after the other."""

    def __init__(self, heads: Heads):
        self._heads, self._tiles = heads, {}

    def put(self, head: int, x: jax.Array) -> None:
        """The head's lanes of `x` [T, window]."""
        first, end = self._heads.window(head)
        mask = _mask(head, self._heads)
        for lane in range(first, end, LANES):
            part = slice(lane - first, lane - first + LANES)
            before = self._tiles.get(lane, 0.0)
            self._tiles[lane] = jnp.where(mask[:, part], x[:, part], before)

    def full(self):
        """(first lane, [T, 128]) of every register."""
        return self._tiles.items()


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int], dtype) -> jax.Array:
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def _forward_kernel(qkv_ref, bias_ref, out_ref, sums_ref, *, heads: Heads):
    wide = sums_ref.dtype
    projection = _Projection(qkv_ref, bias_ref, heads)
    out = Lanes(heads)
    logs = []
    for head in range(heads.count):
        window = heads.window(head)
        scores = dot(projection.query(head), projection.keys(*window), (1, 1), wide)
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp2(scores - largest)
        total = weights.sum(-1, keepdims=True)
        y = dot(weights.astype(qkv_ref.dtype), projection.values(*window), (1, 0), wide)
        out.put(head, y / total)
        logs.append(largest + jnp.log2(total))
    for first, tile in out.full():
        out_ref[:, first : first + LANES] = tile.astype(out_ref.dtype)
    sums_ref[...] = as_rows(logs, sums_ref.shape[0])


def as_rows(columns: Sequence[jax.Array], rows: int) -> jax.Array:
    """[T, 1] of each head to [rows, T]: as a column each would take 128 lanes."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    side_by_side = jnp.zeros((columns[0].shape[0], LANES), columns[0].dtype)
    for i, column in enumerate(columns):
        side_by_side = jnp.where(lane == i, column, side_by_side)
    return side_by_side.T[:rows]


def _backward_kernel(
    qkv_ref, bias_ref, sums_ref, gradient_ref, d_qkv_ref, d_bias_ref, *, heads: Heads
):
    """All of it transposed, [keys, queries]: what each query subtracts is then a row."""
    wide, narrow = sums_ref.dtype, qkv_ref.dtype
    projection = _Projection(qkv_ref, bias_ref, heads)
    d_q, d_k, d_v = Lanes(heads), Lanes(heads), Lanes(heads)
    for head in range(heads.count):
        window = heads.window(head)
        lanes = slice(*window)
        gradient = gradient_ref[:, lanes]
        keys, values = projection.keys(*window), projection.values(*window)
        scores = dot(keys, projection.query(head), (1, 1), wide)
        weights = jnp.exp2(scores - sums_ref[head : head + 1])
        d_v.put(head, dot(weights.astype(narrow), gradient, (1, 0), wide))
        d_weights = dot(values, only(gradient, head, heads), (1, 1), wide)
        products = weights * d_weights
        inner = products.sum(0, keepdims=True)
        d_scores = (products - weights * inner).astype(narrow)
        # The queries carry scale · log₂e already.
        d_k.put(head, dot(d_scores, projection.queries(head), (1, 0), wide) * (1 / _LOG2_E))
        d_q.put(head, dot(d_scores, keys, (0, 0), wide) * heads.score_scale)
    for part, gradients in enumerate((d_q, d_k, d_v)):
        for first, tile in gradients.full():
            lanes = slice(part * heads.lanes + first, part * heads.lanes + first + LANES)
            d_qkv_ref[:, lanes] = tile.astype(d_qkv_ref.dtype)
            d_bias_ref[:, lanes] = tile.sum(0, keepdims=True)

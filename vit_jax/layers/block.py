"""The pre-norm block, and how a model runs a stack of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.drop import DropPath, drop_path_rates
from vit_jax.layers.init import normal_02
from vit_jax.layers.mlp import MlpBlock, exact_gelu
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.remat import save_only

Factory = Callable[..., nn.Module]
Tokens = TypeVar("Tokens")  # an array, or a tree of arrays where a block has several streams


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), each branch through `residual`.

    Dosovitskiy et al. 2021, equations 2 and 3. [N, T, D] -> [N, T, D].

    Attributes:
      attention, mlp: Called as `factory(name=…)(x, train=…)`; the attention gets the context too.
      norm: Called as `factory(name=…)(x)`.
      residual: What a branch goes through before it is added, `factory(name=…)(y, rate, train=…)`.
    """

    attention: Factory
    mlp: Factory
    norm: Factory = LayerNorm
    residual: Factory = DropPath

    @nn.compact
    def __call__(
        self, x: jax.Array, drop_path_rate: float | jax.Array, *, train: bool, **context: Any
    ) -> jax.Array:
        """`context` is what the attention is told beside: a mask as its `bias`, `rotary` angles."""
        y = self.norm(name="LayerNorm_0")(x)
        y = self.attention(name="MultiHeadDotProductAttention_0")(y, train=train, **context)
        x = x + self.residual(name="residual_0")(y, drop_path_rate, train=train)
        y = self.norm(name="LayerNorm_1")(x)
        y = self.mlp(name="MlpBlock_0")(y, train=train)
        return x + self.residual(name="residual_1")(y, drop_path_rate, train=train)


def vit_block(
    num_heads: int,
    mlp_dim: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = exact_gelu,
    norm: Factory = LayerNorm,
    residual: Factory = DropPath,
    attention: Factory = MultiHeadDotProductAttention,
    qkv_bias: bool | tuple[str, ...] = True,
    mlp: Factory | None = None,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    dtype: Any = None,
) -> Factory:
    """The plain block with PyTorch's habits: erf form of GELU, kernels from N(0, 0.02²), biases 0.

    Args:
      attention: Takes the fields of `MultiHeadDotProductAttention`.
      mlp: Takes the fields of `GatedMlp`; None is the plain MLP with `activation`.
      dropout_rate: On the output of the attention, and twice in the MLP.
      attention_dropout_rate: On the attention weights.
    """
    attend = torch_attention(
        num_heads,
        attention=attention,
        qkv_bias=qkv_bias,
        dropout_rate=dropout_rate,
        attention_dropout_rate=attention_dropout_rate,
        dtype=dtype,
    )
    if mlp is None:
        mlp = functools.partial(torch_mlp(mlp_dim), activation=activation)
    else:
        mlp = functools.partial(mlp, mlp_dim)
    return functools.partial(
        Block,
        attention=attend,
        mlp=functools.partial(mlp, dropout_rate=dropout_rate, dtype=dtype),
        norm=functools.partial(norm, dtype=dtype),
        residual=residual,
    )


def google_block(
    num_heads: int,
    mlp_dim: int,
    *,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    dtype: Any = None,
) -> Factory:
    """The plain block of the original code: tanh form of GELU, Flax's initialisers."""
    return functools.partial(
        Block,
        attention=functools.partial(
            MultiHeadDotProductAttention,
            num_heads,
            dropout_rate=attention_dropout_rate,
            out_dropout_rate=dropout_rate,
            dtype=dtype,
        ),
        mlp=functools.partial(MlpBlock, mlp_dim, dropout_rate=dropout_rate, dtype=dtype),
        norm=functools.partial(LayerNorm, dtype=dtype),
    )


def torch_attention(
    num_heads: int,
    *,
    attention: Factory = MultiHeadDotProductAttention,
    qkv_bias: bool | tuple[str, ...] = True,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    dtype: Any = None,
) -> Factory:
    """Attention with PyTorch's habits, as in `vit_block`."""
    return functools.partial(
        attention,
        num_heads,
        dropout_rate=attention_dropout_rate,
        out_dropout_rate=dropout_rate,
        qkv_bias=qkv_bias,
        kernel_init=normal_02,
        dtype=dtype,
    )


def torch_mlp(
    mlp_dim: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = exact_gelu,
    dropout_rate: float = 0.0,
    dtype: Any = None,
) -> Factory:
    """The plain MLP with PyTorch's habits, as in `vit_block`."""
    return functools.partial(
        MlpBlock,
        mlp_dim,
        dropout_rate=dropout_rate,
        activation=activation,
        kernel_init=normal_02,
        bias_init=nn.initializers.zeros,
        dtype=dtype,
    )


def run_blocks(
    block: Factory | Sequence[Factory],
    x: Tokens,
    *,
    depth: int,
    name: str,
    train: bool,
    first: int = 0,
    drop_path_rate: float | Sequence[float] = 0.0,
    remat: bool | str = False,
    scan: bool = False,
    context: Mapping[str, Any] | None = None,
) -> Tokens:
    """Runs `depth` blocks one after the other; to be called in a compact method.

    Args:
      block: Called as `block(name=…)(x, drop_path_rate, train=…)`; returns the shape of `x`.
        Where blocks differ (windows that shift), one for each; these cannot be scanned.
      name: Prefix: the blocks are `{name}_0`, `{name}_1`, … With `scan` there is one, `{name}`,
        and every parameter has a leading axis of `depth` (see `vit_jax.checkpoint.stacked`).
      first: Number of the first block, where something stands between the blocks of one name.
      drop_path_rate: The rate of the last block, growing linearly from 0; or a rate for each block.
      remat: Recompute a block's activations in the backward pass instead of keeping them: all of
        them, or all but those named, such as 'qkv,mlp' (see `./remat.py`).
      scan: Compile one block and loop over it: the compile time no longer grows with the depth.
      context: Arrays by name that every block gets as they are, as keyword arguments: a mask,
        rotary angles. A `remat` does not compute them again.
    """
    if isinstance(drop_path_rate, Sequence):
        rates = tuple(map(float, drop_path_rate))
    else:
        rates = drop_path_rates(drop_path_rate, depth)
    blocks = block if isinstance(block, Sequence) else [block] * depth
    if {len(rates), len(blocks)} != {depth}:
        raise UserError(f"{depth} blocks, but {len(blocks)} factories and {len(rates)} rates")

    context = dict(context or {})

    def body(
        module: nn.Module, x: Tokens, rate: float | jax.Array, context: dict[str, Any]
    ) -> Tokens:
        def call(module, x, context, *traced_rate):
            # A static rate stays outside the arguments: `remat` would trace it.
            return module(x, *(traced_rate or (rate,)), train=train, **context)

        if not remat:
            return module(x, rate, train=train, **context)
        traced = () if isinstance(rate, float) else (rate,)
        policy = save_only(remat) if isinstance(remat, str) else None
        # A scanned body is its own computation already: nothing to guard against merging.
        return nn.remat(call, prevent_cse=not scan, policy=policy)(module, x, context, *traced)

    if not scan:
        for i, (make, rate) in enumerate(zip(blocks, rates, strict=True)):
            x = body(make(name=f"{name}_{first + i}"), x, rate, context)
        return x
    if isinstance(block, Sequence):
        raise UserError("blocks that differ cannot be scanned: set scan=False")

    def step(module: nn.Module, x: Tokens, rate: jax.Array | None, context: dict[str, Any]):
        return body(module, x, 0.0 if rate is None else rate, context), None

    loop = nn.scan(
        step,
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
        length=depth,
    )
    scanned = jnp.asarray(rates, jnp.float32) if any(rates) else None
    x, _ = loop(block(name=name), x, scanned, context)
    return x

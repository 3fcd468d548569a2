"""Low-rank adaptation, LoRA (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank · A B.

A kernel W that is adapted stays as it is; trained are A, 'lora_a' [inputs, rank], and B, 'lora_b'
[rank, outputs], which lie beside 'kernel' in the tree. The model never sees them: it is applied
with the merged kernels. A kernel of more axes, of heads or of a convolution, is adapted as the
matrix that it is when its inputs and its outputs are each seen as one axis. In stacked (scanned)
blocks everything has a leading axis of layers.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vit_jax.errors import UserError
from vit_jax.train.parameter_rules import Rules, per_parameter, stack_depths
from vit_jax.tree import flatten, unflatten

A, B = "lora_a", "lora_b"


def check(config: ConfigDict) -> None:
    """Raises UserError for settings of a run that adapters do not go together with."""
    if not config.lora.rank:
        return
    if config.ema.decay:
        raise UserError("lora.rank with ema.decay: a run with adapters keeps no moving average")
    if any(frozen for _, frozen in config.freeze_rules):
        raise UserError(
            "lora.rank with freeze_rules: adapters freeze everything but themselves and what "
            "lora.train names; leave freeze_rules out"
        )


def scale(config: ConfigDict) -> float | None:
    """The factor of the products A B, alpha / rank; None for a run without adapters."""
    return config.lora.alpha / config.lora.rank if config.lora.rank else None


def adapted(
    params: Mapping[str, Any], key: jax.Array, *, rank: int, targets: Rules[bool]
) -> dict[str, Any]:
    """The parameters with fresh adapters: A is normal with variance 1 / inputs, B is 0.

    Args:
      params: The parameters of a model.
      key: The key from which every A is drawn.
      rank: The rank of the adapters.
      targets: Pairs (regex on parameter names, whether these kernels are adapted).

    Raises:
      UserError: if the rules do not fit the parameters, or adapt what is no kernel, a part of the
        layers of a stack, or nothing.
    """
    flat = flatten(params)
    chosen = flatten(per_parameter(targets, params, "lora.targets"))
    layers = flatten(stack_depths(params))
    new = dict(flat)
    for i, name in enumerate(sorted(flat)):
        if np.ndim(chosen[name]):
            raise UserError(
                f"lora.targets: {name!r} stacks the kernels of all layers, and only some of them "
                "are named; name all layers, or train with config.model.scan=False"
            )
        if not chosen[name]:
            continue
        module, _, leaf = name.rpartition("/")
        if leaf != "kernel" or flat[name].ndim - bool(layers[name]) < 2:
            raise UserError(f"lora.targets: {name!r} {flat[name].shape} is no kernel of a layer")
        stack = (layers[name],) if layers[name] else ()
        shape, bias = flat[name].shape[len(stack) :], flat.get(f"{module}/bias")
        cut = _cut(shape, None if bias is None else bias.ndim - len(stack))
        inputs, outputs = math.prod(shape[:cut]), math.prod(shape[cut:])
        drawn = jax.random.normal(jax.random.fold_in(key, i), (*stack, inputs, rank))
        new[f"{module}/{A}"] = (drawn / math.sqrt(inputs)).astype(flat[name].dtype)
        new[f"{module}/{B}"] = jnp.zeros((*stack, rank, outputs), flat[name].dtype)
    if len(new) == len(flat):
        raise UserError("lora.targets adapts no kernel; with lora.rank at least one is needed")
    return unflatten(new)


def without(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without adapters, as the model is applied with it; its leaves may be anything."""
    return {
        name: without(x) if isinstance(x, Mapping) else x
        for name, x in tree.items()
        if name not in (A, B)
    }


def only(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The adapters alone, flat, by name."""
    return {n: x for n, x in flatten(tree).items() if n.rpartition("/")[2] in (A, B)}


def merged(params: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The parameters with each adapted kernel W replaced by W + factor · A B, without adapters."""
    return _each(params, functools.partial(_sum, factor=factor))


def merged_in_place(params: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """As `merged`, of arrays on devices: each kernel lies as it did."""

    def laid(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        add = jax.jit(_sum, static_argnames="factor", out_shardings=kernel.sharding)
        return add(kernel, a, b, factor=factor)

    return _each(params, laid)


def _each(tree: Mapping[str, Any], add: Any) -> dict[str, Any]:
    new = {name: _each(x, add) if isinstance(x, Mapping) else x for name, x in tree.items()}
    if A in new:
        new["kernel"] = add(new["kernel"], new.pop(A), new.pop(B))
    return new


def _sum(kernel: jax.Array, a: jax.Array, b: jax.Array, factor: float) -> jax.Array:
    product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return kernel + factor * product.reshape(kernel.shape)


def _cut(shape: tuple[int, ...], outputs: int | None) -> int:
    """The number of axes of a kernel that are its inputs.

    A bias has the axes of the outputs. Where there is none, the cut is that of the smallest
    adapters, which is the true one where the heads together are as wide as the model.
    """
    if outputs is not None:
        return len(shape) - outputs
    sizes = {i: math.prod(shape[:i]) + math.prod(shape[i:]) for i in range(1, len(shape))}
    return min(sizes, key=lambda i: sizes[i])

"""How much alike a model's tokens have become, layer by layer.

In deep Vision Transformers all tokens of an image tend to become the same (over-smoothing). The
measure is that of Gong et al. 2021, "Vision Transformers with Patch Diversification"
(arXiv:2104.12753): the mean absolute cosine between two different tokens.
"""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.layers.precision import widened


def mean_similarity(x: jax.Array) -> jax.Array:
    """The mean over i ≠ j of |cos(x_i, x_j)|: tokens [N, T, D] to [N], in [0, 1].

    It is the patch-wise cosine loss of the paper, too.
    """
    x = widened(x)
    # A vector of zeros has no direction: it counts as orthogonal to all, and its gradient is 0.
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    x = x / jnp.sqrt(jnp.where(square > 0, square, 1.0))
    cosines = jnp.abs(jnp.einsum("nid,njd->nij", x, x))
    tokens = x.shape[1]
    others = 1.0 - jnp.eye(tokens, dtype=x.dtype)
    return (cosines * others[None]).sum(axis=(1, 2)) / max(tokens * (tokens - 1), 1)


def similarity_by_depth(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> collections.OrderedDict[str, jax.Array]:
    """`mean_similarity` of what each block gives, [N], by the block's path, in order of depth.

    In evaluation mode, and traceable. The class token is one of the tokens where a block has it,
    and a map [N, H, W, D] has H · W tokens.

    Args:
      model: Any model whose layers are blocks.
      variables: What the model is applied with; blocks one by one, not stacked.
      images: [N, H, W, C].

    Raises:
      UserError: for a model without blocks, and for one that scans them.
    """
    # JAX would put the keys of a plain dict into alphabetical order.
    found: collections.OrderedDict[str, jax.Array] = collections.OrderedDict()

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and is_block(context.module):
            x = tokens_of(output, len(images))
            found["/".join(context.module.path)] = mean_similarity(x)
        return output

    require_unscanned(model)
    with nn.intercept_methods(record):
        model.apply(variables, images, train=False)
    if not found:
        raise UserError(f"{type(model).__name__} has no blocks whose tokens could be compared")
    return found


def require_unscanned(model: nn.Module) -> None:
    """Raises UserError for a model that scans its blocks: only a loop has a body to look into."""
    if getattr(model, "scan", False) or (getattr(model, "transformer", None) or {}).get("scan"):
        raise UserError("the layers of a model that scans them cannot be looked at: scan=False")


def tokens_of(output: Any, images: int) -> jax.Array:
    """The tokens of the images [N, T, D], of what a block gives.

    Beside them a block may give others: tokens inside each patch [N · T, …], or attention weights
    [N, heads, T, T].
    """
    arrays = [x for x in jax.tree.leaves(output) if jnp.ndim(x) in (3, 4) and len(x) == images]
    x = min(arrays, key=jnp.ndim)
    return x.reshape(images, -1, x.shape[-1])


def is_block(module: nn.Module) -> bool:
    """Whether this is one of a stack of blocks, which are numbered: `encoderblock_3`."""
    name, _, number = (module.name or "").rpartition("_")
    return number.isdecimal() and name.lower().endswith("block") and "mlp" not in name.lower()

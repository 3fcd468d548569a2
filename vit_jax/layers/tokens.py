"""The tokens of a map, and learned ones before them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.init import normal_02
from vit_jax.layers.patch import PatchSize, embed_patches

# The collection in which a model shows its patches before the blocks and after them.
PATCHES = "patches"


def map_tokens(x: jax.Array) -> jax.Array:
    """[N, H, W, D] -> [N, H * W, D], row by row."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def patch_tokens(
    images: jax.Array,
    features: int,
    size: PatchSize,
    *,
    dtype: Any,
    name: str = "embedding",
    **fields: Any,
) -> jax.Array:
    """A token for each patch, row by row: [N, H, W, C] -> [N, T, features].

    To be called in a compact method; arguments and errors are those of `embed_patches`.
    """
    return map_tokens(embed_patches(images, features, size, dtype=dtype, name=name, **fields))


def prepend_tokens(
    module: nn.Module,
    x: jax.Array,
    *names: str,
    init: Callable[..., jax.Array] = normal_02,
) -> jax.Array:
    """[N, T, D] -> [N, len(names) + T, D]: one token a name, in that order, before the others.

    To be called in a compact method: `module` gets a parameter [1, 1, D] for each name.
    """
    tokens = [module.param(name, init, (1, 1, x.shape[-1])) for name in names]
    shape = (x.shape[0], 1, x.shape[-1])
    return jnp.concatenate([*(jnp.broadcast_to(t.astype(x.dtype), shape) for t in tokens), x], 1)


def insert_registers(
    module: nn.Module, x: jax.Array, count: int, *, first: int, name: str = "registers"
) -> jax.Array:
    """[N, T, D] -> [N, T + count, D]: learned tokens, the first of which becomes token `first`.

    Darcet et al. 2024, "Vision Transformers Need Registers" (arXiv:2309.16588), section 2.2. To be
    called in a compact method: `module` gets a parameter [1, count, D].
    """
    registers = module.param(name, normal_02, (1, count, x.shape[-1]))
    shape = (x.shape[0], count, x.shape[-1])
    registers = jnp.broadcast_to(registers.astype(x.dtype), shape)
    return jnp.concatenate([x[:, :first], registers, x[:, first:]], axis=1)


def exchange_tokens(x: jax.Array, mix: jax.Array | None) -> jax.Array:
    """Tokens [N, T, D] of the batch read backwards where `mix` [rows, columns] is true.

    MixToken: Jiang et al. 2021 (LV-ViT, arXiv:2104.10858), section 3.3. None changes nothing.
    """
    return x if mix is None else jnp.where(mix.reshape(1, -1, 1), x[::-1], x)


def show_patches(module: nn.Module, embedded: jax.Array, final: jax.Array) -> None:
    """Gives the patches [N, T, D] to whoever looks at `PATCHES`, which changes nothing.

    `state[PATCHES]["embedded"][0]` are those that were embedded, without positions, and
    `state[PATCHES]["final"][0]` those after the last norm, of what
    `output, state = model.apply(…, mutable=[PATCHES])` returned. To be called once, in the compact
    method of the model.
    """
    if not module.is_initializing():  # They are no variables of the model.
        module.sow(PATCHES, "embedded", embedded)
        module.sow(PATCHES, "final", final)


def patches_of(state: Mapping[str, Any]) -> dict[str, jax.Array]:
    """'embedded' and 'final' [N, T, D], if `mutable=[PATCHES]` made a model show its patches."""
    found = state.get(PATCHES, {})
    # What a tower of a model shows lies below its name.
    return {name: shown[0] for name, shown in found.items() if isinstance(shown, tuple)}

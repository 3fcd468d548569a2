"""Which program computes attention: the choice, and where it holds.

`with attending('auto', mesh):` around what is traced; a run does so by `config.attend`. Without it
attention is chosen for one device of JAX's default kind.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from vit_jax.errors import UserError, suggest
from vit_jax.layers import cudnn_attention
from vit_jax.layers.packed_attention import Heads, packed_attention, supports

# 'packed' is the kernel of ./packed_attention.py, 'cudnn' NVIDIA's flash attention. 'auto' takes
# the one on TPU and the other on GPU, both in 16-bit types. All fall back to 'xla', plain
# operations, for what they cannot do: weights to look at or to drop out, a bias, lengths or head
# widths out of range.
IMPLEMENTATIONS = ("auto", "xla", "packed", "cudnn")
_BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Attending:
    """The choice: a name of `IMPLEMENTATIONS`, and the mesh that the batch is split over."""

    name: str = "auto"
    mesh: Mesh | None = None

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu': what the traced program will run on."""
        if self.mesh is None:
            return jax.default_backend()
        return self.mesh.devices.flat[0].platform

    def shards(self) -> int | None:
        """Parts of the batch, on a device each; None where heads are split too, or none knows."""
        if self.mesh is None:
            return 1 if jax.device_count() == 1 or self.name == "packed" else None
        parts = 1
        for axis, size in self.mesh.shape.items():
            if axis in _BATCH_AXES:
                parts *= size
            elif size > 1:
                return None
        return parts


_ANYWHERE = Attending()
_current: contextvars.ContextVar[Attending] = contextvars.ContextVar("attending", default=_ANYWHERE)


@contextlib.contextmanager
def attending(name: str, mesh: Mesh | None = None) -> Iterator[None]:
    """Chooses attention for what is traced inside; also a decorator of what will be traced.

    Args:
      name: Of `IMPLEMENTATIONS`.
      mesh: The batch is split over its axes 'data' and 'fsdp'.

    Raises:
      UserError: for an unknown name, or one that the mesh's devices cannot run.
    """
    check(name, mesh)
    token = _current.set(Attending(name, mesh))
    try:
        yield
    finally:
        _current.reset(token)


def check(name: str, mesh: Mesh | None = None) -> None:
    """Raises UserError as `attending` does."""
    if name not in IMPLEMENTATIONS:
        raise UserError(
            f"attend={name!r} is unknown.{suggest(name, IMPLEMENTATIONS)} "
            f"Known: {', '.join(IMPLEMENTATIONS)}"
        )
    platform = Attending(name, mesh).platform
    if name == "cudnn" and platform != "gpu":
        raise UserError(f"attend='cudnn' needs NVIDIA GPUs; these devices are of kind {platform!r}")
    if name == "packed" and platform == "gpu":
        raise UserError("attend='packed' is a kernel for TPUs; these devices are GPUs")


def on_cpu() -> bool:
    return _current.get().platform == "cpu"


def takes_cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """Whether cuDNN computes this attention; shapes as in `attend`."""
    choice = _current.get()
    chosen = choice.name in ("auto", "cudnn") and choice.platform == "gpu"
    return chosen and cudnn_attention.supports(q, k, v)


def takes_packed(x: jax.Array, heads: Heads, dtype: Any) -> bool:
    """Whether the packed kernel computes self-attention over the tokens `x` [N, T, D].

    Args:
      dtype: To compute in; None for that of `x`.
    """
    choice = _current.get()
    if choice.name not in ("auto", "packed") or x.ndim != 3:
        return False
    if choice.name == "auto" and (choice.platform != "tpu" or (dtype or x.dtype) != jnp.bfloat16):
        return False
    shards = choice.shards()
    return shards is not None and x.shape[0] % shards == 0 and supports(x.shape[1], heads)


def packed_over_mesh(qkv: jax.Array, bias: jax.Array, heads: Heads) -> jax.Array:
    """`packed_attention`, each device on its own images."""
    choice = _current.get()

    def attend(qkv: jax.Array, bias: jax.Array) -> jax.Array:
        return packed_attention(qkv, bias, heads, choice.platform == "cpu")

    if choice.mesh is None:
        return attend(qkv, bias)
    axes = tuple(axis for axis in _BATCH_AXES if axis in choice.mesh.shape)
    images = PartitionSpec(axes)
    return jax.shard_map(
        attend,
        mesh=choice.mesh,
        in_specs=(images, PartitionSpec()),
        out_specs=images,
        check_vma=False,  # The kernel's outputs do not say how they vary.
    )(qkv, bias)

"""Which program computes attention: the choice, where it holds, and what came of it.

`with attending('packed'):` around what is traced or called. The choice is part of the key under
which `jax.jit` keeps compiled programs: a function that was compiled under one choice is traced
again under another.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh, PartitionSpec

from vit_jax.errors import UserError, suggest
from vit_jax.layers.attention import cudnn, flash, packed
from vit_jax.layers.axes import BATCH_AXES

# 'packed' is the kernel of ./packed.py, 'flash' that of ./flash.py for long rows, 'cudnn' NVIDIA's
# flash attention, 'xla' plain operations, 'blocks' the same of one block of queries at a time, see
# ./blocks.py. 'auto' takes the first two on TPU and the third on GPU, for 16-bit types and where
# they can compute an attention; for all else 'blocks' where an image has more scores than
# `_MOST_SCORES` in a head, 'xla' where not.
IMPLEMENTATIONS = ("auto", "xla", "blocks", "packed", "flash", "cudnn")
_KERNELS = ("packed", "flash", "cudnn")
_MOST_SCORES = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Attending:
    """What was asked for.

    Attributes:
      name: One of `IMPLEMENTATIONS`.
      mesh: The batch is split over it; None for a program on one device.
      platform: 'cpu', 'gpu' or 'tpu', for which operations are chosen; None for the platform of
        the devices.
      known: Whether somebody said where the program runs. Otherwise it may be split over several
        devices by shardings that are not seen when it is traced, and a kernel would not compile.
    """

    name: str = "auto"
    mesh: Mesh | None = None
    platform: str | None = None
    known: bool = False

    @property
    def devices(self) -> str:
        """The kind of the devices that run the program: 'cpu', 'gpu' or 'tpu'."""
        if self.mesh is None:
            return jax.default_backend()
        return self.mesh.devices.flat[0].platform

    @property
    def chosen_for(self) -> str:
        """The platform for which operations are chosen."""
        return self.platform or self.devices

    def shards(self) -> int | str:
        """Into how many parts the batch is cut, or why no kernel can run on its own part."""
        if self.mesh is None:
            alone = self.known or jax.device_count() == 1
            return 1 if alone else "nobody said that the program runs on one device"
        split = [a for a, n in self.mesh.shape.items() if a not in BATCH_AXES and n > 1]
        if split:
            return f"mesh.{split[0]}={self.mesh.shape[split[0]]} splits the heads"
        parts = 1
        for size in self.mesh.shape.values():
            parts *= size
        return parts

    def not_cut(self, images: int) -> str | None:
        """Why a kernel cannot run on a part of so many images on each device, None if it can."""
        shards = self.shards()
        if isinstance(shards, str):
            return shards
        return f"{shards} devices do not divide {images} images" if images % shards else None


@dataclasses.dataclass
class _Taken:
    """The programs that attentions got while something was traced, and why they got no other."""

    programs: set[str] = dataclasses.field(default_factory=set)
    reasons: list[str] = dataclasses.field(default_factory=list)


# The value of this context is part of the key of every jit cache.
_choice = jax.make_user_context(default_value=Attending())
_taken: contextvars.ContextVar[_Taken | None] = contextvars.ContextVar("taken", default=None)


def current() -> Attending:
    """The choice that holds here."""
    return _choice.value


@contextlib.contextmanager
def attending(
    name: str | None = None, mesh: Mesh | None = None, platform: str | None = None
) -> Iterator[None]:
    """Chooses attention for what is traced inside; also a decorator of what will be traced.

    Args:
      name: One of `IMPLEMENTATIONS`; None for what holds around it, at first 'auto'.
      mesh: The batch is split over its axes `BATCH_AXES`. Without one the program inside must run
        on one device, of which there may be several.
      platform: 'cpu', 'gpu' or 'tpu': takes the operations that are chosen there, whatever the
        devices are. None for what holds around it, at first the platform of the devices.

    Raises:
      UserError: for an unknown name, or one that the devices cannot run. While something is
        traced: for a kernel that was asked for by its name and cannot compute an attention as it
        stands (its type, its size, dropout of its weights), with the reason. At the end: if the
        kernel that was asked for computes none of the attentions that were traced.
    """
    around = current()
    asked = Attending(name or around.name, mesh, platform or around.platform, known=True)
    _check(asked)
    taken = _Taken()
    token = _taken.set(taken)
    try:
        with _choice(asked):
            yield
    finally:
        _taken.reset(token)
    if taken.programs:
        _tell(asked, taken)


def check(name: str, mesh: Mesh | None = None) -> None:
    """Raises UserError where `attending` does before anything is traced."""
    _check(Attending(name, mesh, known=True))


def _check(asked: Attending) -> None:
    name, platform = asked.name, asked.chosen_for
    if name not in IMPLEMENTATIONS:
        raise UserError(
            f"attend={name!r} is unknown.{suggest(name, IMPLEMENTATIONS)} "
            f"Known: {', '.join(IMPLEMENTATIONS)}"
        )
    if name == "cudnn" and platform != "gpu":
        raise UserError(f"attend='cudnn' needs NVIDIA GPUs; these devices are of kind {platform!r}")
    if name in ("packed", "flash") and platform == "gpu":
        raise UserError(f"attend={name!r} is a kernel for TPUs; these devices are GPUs")
    if name in ("packed", "flash") and isinstance(reason := asked.shards(), str):
        raise _refused(name, reason)


def _tell(asked: Attending, taken: _Taken) -> None:
    others = f" ({'; '.join(taken.reasons)})" if taken.reasons else ""
    if asked.name in _KERNELS and asked.name not in taken.programs:
        raise UserError(
            f"attend={asked.name!r}: no attention of this model can be computed by that kernel"
            f"{others}. Take 'auto' or 'xla'"
        )
    if asked.name == "auto":
        _log(f"attend='auto' took {' and '.join(sorted(taken.programs))}{others}")


@functools.cache
def _log(text: str) -> None:
    """Logs a text the first time that it is said."""
    logging.info("%s", text)


def _refused(name: str, reason: str) -> UserError:
    return UserError(
        f"attend={name!r} cannot compute this attention: {reason}. Take 'auto' or 'xla'"
    )


def _note(program: str) -> None:
    if (taken := _taken.get()) is not None:
        taken.programs.add(program)


def _note_why(reason: str) -> None:
    """Notes why an attention did not get the best program."""
    if (taken := _taken.get()) is not None and reason not in taken.reasons:
        taken.reasons.append(reason)


def on_cpu() -> bool:
    """Whether operations are chosen for CPUs."""
    return current().chosen_for == "cpu"


def needs_weights(reason: str) -> None:
    """To be called where the attention weights are changed by a setting that can be turned off.

    Raises:
      UserError: if a kernel was asked for by its name, as those have no such weights.
    """
    if current().name in (*_KERNELS, "blocks"):
        raise _refused(current().name, reason)


def takes_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, other_kind: str | None) -> bool:
    """Whether cuDNN computes this attention.

    Args:
      q, k, v: Shapes as in `attend`.
      other_kind: Why no kernel computes this kind of attention, if that is so.

    Raises:
      UserError: where 'cudnn' was asked for, and could compute this kind but for its type or size.
    """
    choice = current()
    if choice.name not in ("auto", "cudnn") or choice.chosen_for != "gpu":
        return False
    if other_kind is None and q.ndim != 4:
        other_kind = "windows"
    return _takes("cudnn", choice, other_kind, other_kind or cudnn.problem(q, k, v))


def takes_packed(x: jax.Array, heads: packed.Heads, dtype: Any, other_kind: str | None) -> bool:
    """Whether the packed kernel computes self-attention over the tokens `x` [N, T, D].

    Args:
      dtype: Type to compute in; None for that of `x`.
      other_kind: Why no kernel computes this kind of attention, if that is so.

    Raises:
      UserError: where 'packed' was asked for, and could compute this kind but for its size, or
        for the devices.
    """
    choice = current()
    if choice.name == "auto":
        if choice.chosen_for != "tpu":
            return False
        if (dtype or x.dtype) != jnp.bfloat16:
            _note_why(f"{jnp.dtype(dtype or x.dtype)}, not bfloat16")
            return False
    elif choice.name != "packed":
        return False
    if other_kind is None and x.ndim != 3:
        other_kind = "windows"
    return _takes("packed", choice, other_kind, other_kind or _not_packed(choice, x, heads))


def takes_flash(q: jax.Array, k: jax.Array, v: jax.Array, other_kind: str | None) -> bool:
    """Whether the kernel for long rows computes this attention.

    Args:
      q, k, v: Shapes as in `attend`.
      other_kind: Why no kernel computes this kind of attention, if that is so.

    Raises:
      UserError: where 'flash' was asked for, and could compute this kind but for its size, or for
        the devices.
    """
    choice = current()
    if choice.name == "auto":
        long = k.shape[-3] >= flash.FEWEST_KEYS and q.shape[-3] > 1
        if choice.chosen_for != "tpu" or not long or q.dtype != jnp.bfloat16:
            return False
    elif choice.name != "flash":
        return False
    if other_kind is None and q.ndim != 4:
        other_kind = "windows"
    problem = other_kind or choice.not_cut(q.shape[0]) or flash.problem(q, k, v)
    return _takes("flash", choice, other_kind, problem)


def _takes(kernel: str, choice: Attending, other_kind: str | None, problem: str | None) -> bool:
    """Whether a kernel computes an attention with which there is this problem, or none.

    Raises UserError where the kernel was asked for by its name, and could compute this kind.
    """
    if problem is None:
        _note(kernel)
        return True
    if other_kind is None and choice.name == kernel:
        raise _refused(kernel, problem)
    _note_why(problem)
    return False


def _not_packed(choice: Attending, x: jax.Array, heads: packed.Heads) -> str | None:
    return choice.not_cut(x.shape[0]) or packed.problem(x.shape[1], heads)


def takes_blocks(q: jax.Array, k: jax.Array, other_kind: str | None) -> bool:
    """Whether an attention is computed by plain operations, a block of queries at a time.

    Args:
      q: Queries, of a shape as in `attend`.
      k: Keys, of a shape as in `attend`.
      other_kind: Why it cannot be, if that is so.

    Raises:
      UserError: where 'blocks' was asked for, and it cannot be.
    """
    choice = current()
    if choice.name == "blocks" and other_kind is not None:
        raise _refused(choice.name, other_kind)
    long = q.shape[-3] * k.shape[-3] > _MOST_SCORES
    taken = choice.name == "blocks" or (choice.name != "xla" and long and other_kind is None)
    if taken:
        _note("blocks")
    elif choice.name != "xla" and long:
        _note_why(f"all scores of {q.shape[-3]} tokens at once: {other_kind}")
    return taken


def takes_plain() -> None:
    """Notes that plain operations compute an attention, with all scores at once."""
    _note("xla")


def packed_over_mesh(qkv: jax.Array, bias: jax.Array, heads: packed.Heads) -> jax.Array:
    """`packed_attention`, each device on its own images."""
    interpret = current().devices == "cpu"
    return _over_mesh(
        lambda qkv, bias: packed.packed_attention(qkv, bias, heads, interpret), (qkv,), (bias,)
    )


def flash_over_mesh(q: jax.Array, k: jax.Array, v: jax.Array, scale: float | None) -> jax.Array:
    """`flash_attention`, each device on its own images."""
    interpret = current().devices == "cpu"
    return _over_mesh(
        lambda q, k, v: flash.flash_attention(q, k, v, scale, interpret), (q, k, v), ()
    )


def _over_mesh(
    kernel: Callable[..., jax.Array], of_images: Sequence[jax.Array], of_all: Sequence[jax.Array]
) -> jax.Array:
    """`kernel(*of_images, *of_all)`, the first of them cut by images over the mesh."""
    mesh = current().mesh
    if mesh is None:
        return kernel(*of_images, *of_all)
    images = PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape))
    return jax.shard_map(
        kernel,
        mesh=mesh,
        in_specs=(*[images] * len(of_images), *[PartitionSpec()] * len(of_all)),
        out_specs=images,
        check_vma=False,  # The kernel's outputs do not say how they vary.
    )(*of_images, *of_all)

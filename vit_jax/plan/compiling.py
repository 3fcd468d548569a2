"""Compiles the training step of a config for given devices, and makes a plan from the program."""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vit_jax.devices.shard_sizes import bytes_a_device, unsplit
from vit_jax.devices.sharding import make_mesh
from vit_jax.errors import UserError
from vit_jax.evaluate.flops import train_flops
from vit_jax.input_pipeline import recipes
from vit_jax.plan import traffic
from vit_jax.plan.chips import chip
from vit_jax.plan.report import Memory, Plan
from vit_jax.plan.waiting import interruptible
from vit_jax.train import engine as engine_lib
from vit_jax.train.optimizers import matrix_flops
from vit_jax.train.resolved import resolved
from vit_jax.train.state import TrainState

ADVICE = (
    "A smaller batch, more accum_steps, remat of the model or a larger mesh.fsdp may help; "
    "--fit batch and --fit chips try them."
)
# The TPU compiler has one message for a program that is too large as a whole, and another for
# temporaries that alone are too large, which it finds early, before it knows the whole program.
_WHOLE = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_PART = re.compile(r"\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A step that is lowered and not yet compiled, with the facts that are known by then."""

    engine: engine_lib.Engine
    state: Any
    lowered: Any
    image_flops: float | None
    notes: tuple[str, ...]


class DoesNotFit(UserError):
    """The compiler found no place for the step in the devices' memory.

    Attributes:
      needed, available: Bytes that a device needs, at least, and bytes that it has.
    """

    def __init__(self, message: str, needed: float, available: float):
        super().__init__(message)
        self.needed, self.available = needed, available


def build(config: Any, mesh: Mesh, num_classes: int) -> engine_lib.Engine:
    """The engine that `train` would build from a complete config.

    Raises:
      UserError: for a config that `train` would refuse.
    """
    if config.model is None:
        raise UserError("--config.model is not set")
    # No shape in the compiled step depends on the length of the run or of an epoch.
    config = config.copy_and_resolve_references().unlock()
    with config.ignore_type():
        config.total_steps = config.total_steps or 10**9
    return engine_lib.build(resolved(config, epoch_images=10**6), mesh, num_classes)


def shapes(engine: engine_lib.Engine) -> TrainState:
    """Shapes and dtypes of the training state, without any arrays."""
    return jax.eval_shape(engine.init, jax.random.key(0))


def limit(device: Any) -> float | None:
    """Bytes that a program can use on a device; None if that is not known."""
    if known := chip(device.device_kind).hbm_bytes:
        return known
    # The devices of a topology do not exist, so that asking for their memory raises.
    with contextlib.suppress(jax.errors.JaxRuntimeError, NotImplementedError):
        return (device.memory_stats() or {}).get("bytes_limit")
    return None


def lower(config: Any, devices: Sequence[Any], num_classes: int) -> Lowered:
    """Lowers the step that `train` would run with a complete config, with its shardings.

    Raises:
      UserError: for a config that `train` would refuse.
    """
    recipes.check(config.pp)
    mesh = make_mesh(config.mesh, devices)
    engine = build(config, mesh, num_classes)
    state = shapes(engine)
    kind = jnp.uint8 if recipes.ends_in_pixels(config.pp, train=True) else jnp.float32
    numbers = engine.task.beside or {"label": ()}
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch, *recipes.image_shape(config.pp)), kind),
        **{k: jax.ShapeDtypeStruct((config.batch, *x), jnp.int32) for k, x in numbers.items()},
    }
    problem = unsplit(state.params, engine.shardings.params, mesh)
    notes = [problem] if problem else []
    if config.distill.kind != "none":
        notes.append("the teacher of config.distill is not part of this plan")
    with _quiet():
        lowered = engine.train_step.lower(state, batch, jax.eval_shape(jax.random.key, 0))
    image_flops = train_flops(engine.model, config.pp.crop, config.pp.channels, engine.task.beside)
    return Lowered(engine, state, lowered, image_flops, tuple(notes))


def compile_step(step: Lowered, config: Any, topology: str | None) -> Plan:
    """Compiles a lowered step, which takes seconds to minutes, and makes its plan.

    Raises:
      DoesNotFit: if the compiler says that the step does not fit into memory.
      UserError: if the compiler fails for another reason.
    """
    mesh = step.engine.mesh
    device = mesh.devices.flat[0]
    started = time.perf_counter()
    try:
        with _quiet():
            compiled = interruptible(step.lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        raise _out_of_memory(error, topology) from error
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    return Plan(
        topology=topology or f"{mesh.size} local {device.device_kind}",
        device_kind=device.device_kind,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        batch=config.batch,
        accum_steps=config.accum_steps,
        image_flops=step.image_flops,
        memory=Memory(
            arguments=memory.argument_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
            program=memory.generated_code_size_in_bytes,
        ),
        limit=limit(device),
        traffic=traffic.count(compiled.as_text()),
        compile_seconds=seconds,
        notes=step.notes,
        optimizer_bytes=bytes_a_device(step.state.opt_state, step.engine.shardings.opt_state),
        optimizer_flops=matrix_flops(config, step.state.params),
    )


def _out_of_memory(error: Exception, topology: str | None) -> UserError:
    """The error for a failure of the compiler, whose message is reduced to one sentence."""
    text = str(error)
    found = _WHOLE.search(text) or _PART.search(text)
    if found is None:
        return UserError(f"the compiler failed: {text.strip().splitlines()[0][:300]}")
    needed, available = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
    at_least = "" if found.re is _WHOLE else "at least "
    return DoesNotFit(
        f"the step does not fit on {topology or 'this machine'}: a device needs {at_least}"
        f"{needed / 1e9:.2f} GB and has {available / 1e9:.2f}, {at_least}"
        f"{(needed - available) / 1e9:.2f} GB too much. {ADVICE}",
        needed,
        available,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences stderr at the level of the file descriptor, to which C++ code writes directly."""
    if os.environ.get("VIT_JAX_COMPILER_LOG"):
        yield
        return
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)

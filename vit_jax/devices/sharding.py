"""Shardings: how the batch, parameters and optimizer state lie on the devices of a mesh.

A mesh has three axes. 'data' copies the state and splits the batch. 'fsdp' splits both: every
device keeps a part of each parameter, gradient and optimizer state, and parameters are gathered
when they are needed (ZeRO stage 3, Rajbhandari et al. 2020, arXiv:1910.02054). 'model' splits heads
and hidden units (Shoeybi et al. 2019, arXiv:1909.08053). The compiler inserts the communication.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.checkpoint.stacked import stacked_names
from vit_jax.devices.ahead import Ahead
from vit_jax.errors import UserError, suggest
from vit_jax.layers.axes import AXES, BATCH_AXES
from vit_jax.tree import arrays, unflatten

# A pattern of parameter names, and the mesh axis of each dimension. () leaves the parameter whole,
# and 'fsdp' splits the widest dimension that the axis divides. Names are those of unscanned models,
# and the first rule that matches the whole name decides.
Rule = tuple[str, tuple[str | None, ...] | str]
RULES: tuple[Rule, ...] = (
    # BERT's layers have names of their own, and the heads of its attention share an axis.
    (r".*/attention_layer/(query|key|value)/kernel", ("fsdp", "model")),
    (r".*/attention_layer/(query|key|value)/bias", ("model",)),
    (r".*/attention_block/dense_layer/kernel", ("model", "fsdp")),
    (r".*/mlp/dense_layer/kernel", ("fsdp", "model")),
    (r".*/mlp/dense_layer/bias", ("model",)),
    (r".*/mlp_block/dense_layer/kernel", ("model", "fsdp")),
    (r".*/(query|key|value)/kernel", ("fsdp", "model", None)),
    (r".*/(query|key|value)/bias", ("model", None)),
    (r".*/out/kernel", ("model", None, "fsdp")),
    (r".*/Dense_0/kernel", ("fsdp", "model")),
    (r".*/Dense_0/bias", ("model",)),
    (r".*/Dense_1/kernel", ("model", "fsdp")),
    (r".*", "fsdp"),
)
# Tensors smaller than this stay whole: gathering them would cost more than keeping them.
MIN_SIZE = 2**12


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that `config.mesh` describes.

    Args:
      sizes: The number of devices along each axis; one size may be -1, for all remaining devices.
      devices: The devices of the mesh, by default all devices of this run.

    Raises:
      UserError: for an unknown axis, or sizes that the devices do not make up.
    """
    devices = jax.devices() if devices is None else devices
    given = dict(sizes or {})
    if unknown := sorted(given.keys() - set(AXES)):
        raise UserError(f"mesh has no axis {unknown[0]!r}.{suggest(unknown[0], AXES)} Axes: {AXES}")
    shape = [given.get(axis, -1 if axis == "data" else 1) for axis in AXES]
    fixed = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) > 1 or fixed < 1 or len(devices) % fixed or fixed > len(devices):
        raise UserError(
            f"mesh {dict(zip(AXES, shape, strict=True))} does not fit {len(devices)} devices: the "
            "sizes must multiply to that number, and one of them may be -1 for the rest"
        )
    shape = [len(devices) // fixed if n == -1 else n for n in shape]
    if int(np.prod(shape)) != len(devices):
        raise UserError(
            f"mesh {dict(zip(AXES, shape, strict=True))} uses {int(np.prod(shape))} of "
            f"{len(devices)} devices; let one axis be -1 to use them all"
        )
    grids = [_grid(inner, part) for inner, part in _within_slices(shape, devices)]
    return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slices(devices: Iterable[Any]) -> list[list[Any]]:
    """The devices of each slice, in the order of the slices' numbers.

    Inside a slice, devices are joined by fast links. It is a TPU slice, or a GPU node (or several
    nodes that NVLink joins); between slices is the data-centre network. JAX numbers them
    (`device.slice_index`); devices without that number, such as a CPU's, are one slice.
    """
    found = collections.defaultdict(list)
    for device in devices:
        found[getattr(device, "slice_index", 0)].append(device)
    return [found[number] for number in sorted(found)]


def _within_slices(
    shape: Sequence[int], devices: Sequence[Any]
) -> list[tuple[tuple[int, ...], list[Any]]]:
    """The shape of the mesh inside each slice, and the slice's devices.

    The axis 'data' goes over the slices, because its only traffic is one sum of the gradients in
    each step; 'fsdp' and 'model' move parameters and activations in every layer.

    Raises:
      UserError: if the slices differ in size, or 'data' is no multiple of their number.
    """
    parts = slices(devices)
    sizes = sorted({len(part) for part in parts})
    if len(sizes) > 1:
        raise UserError(
            f"the {len(devices)} devices are in {len(parts)} slices (TPU slices or GPU nodes) of "
            f"different sizes, {sizes[0]} to {sizes[-1]}; a mesh needs slices of one size"
        )
    if shape[0] % len(parts):
        raise UserError(
            f"mesh {dict(zip(AXES, shape, strict=True))} does not fit {len(parts)} slices (TPU "
            f"slices or GPU nodes) of {sizes[0]} devices: 'fsdp' and 'model' stay inside a slice, "
            f"so that fsdp × model must divide {sizes[0]}, and 'data' be a multiple of {len(parts)}"
        )
    inner = (shape[0] // len(parts), *shape[1:])
    return [(inner, part) for part in parts]


def _grid(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices of one slice, so arranged that neighbours in the mesh are neighbours in it."""
    try:
        return jax.make_mesh(shape, AXES, devices=devices).devices
    except NotImplementedError:
        # For example, no axis of a 16 x 16 torus gives 128 devices, so its axes must be split.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: split over `BATCH_AXES`, and copied along the axis 'model'."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """The number of parts into which `split_batch` cuts a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(name: str, size: int, mesh: Mesh, accum_steps: int = 1) -> None:
    """Raises UserError unless all devices get equal shares of every part of a batch.

    Args:
      name: The config field that holds `size`, for the message.
      size: The number of examples in a batch.
      mesh: The mesh.
      accum_steps: The number of parts into which the batch is cut.
    """
    shards = batch_shards(mesh)
    if size <= 0 or size % (shards * max(accum_steps, 1)):
        parts = f" times accum_steps={accum_steps}" if accum_steps > 1 else ""
        raise UserError(
            f"{name}={size} must be a positive multiple of the number of devices that split it, "
            f"{shards}{parts}"
        )


def param_shardings(params: Any, mesh: Mesh, rules: Sequence[Rule] = ()) -> Any:
    """A sharding for every leaf of a nested dict of arrays or shapes.

    Args:
      params: The parameters.
      mesh: The mesh.
      rules: Rules that are tried before `RULES`.

    Raises:
      UserError: for a rule that matches no parameter, names another number of dimensions, or asks
        for a 'model' axis that does not divide its dimension.
    """
    shapes = {name: tuple(x.shape) for name, x in arrays(params).items()}
    stored = stacked_names(shapes)  # unscanned name -> (stored name, layer)
    _require_use(rules, stored)
    specs = {}
    for name, (where, layer) in stored.items():
        shape = shapes[where] if layer is None else shapes[where][1:]
        spec = _spec(name, shape, mesh, (*rules, *RULES))
        specs[where] = NamedSharding(mesh, PartitionSpec(*spec if layer is None else (None, *spec)))
    return unflatten(specs)


def like_params(opt_state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """The shardings of an optimizer state, in which arrays like a parameter lie as it does.

    An array is taken to belong to a parameter if its path ends in the parameter's name and its
    shape is the same. Every other array (a factored moment, a counter) is whole on every device.
    """
    shapes, by_name = arrays(params), arrays(shardings)

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        for start in range(len(keys)):
            name = "/".join(keys[start:])
            if name in shapes and shapes[name].shape == leaf.shape:
                return by_name[name]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, opt_state)


def _spec(
    name: str, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[Rule]
) -> tuple[str | None, ...]:
    pattern, axes = next(rule for rule in rules if re.fullmatch(rule[0], name))
    if axes == "fsdp":
        return _widest(shape, mesh, (None,) * len(shape)) if np.prod(shape) >= MIN_SIZE else ()
    if isinstance(axes, str) or (axes and len(axes) != len(shape)):
        raise UserError(
            f"the sharding rule {pattern!r} gives {axes!r} to {name} of shape {list(shape)}; "
            "expected an axis or None for each dimension, (), or 'fsdp'"
        )
    model = mesh.shape["model"]
    if any(axis == "model" and n % model for axis, n in zip(axes, shape, strict=False)):
        raise UserError(
            f"mesh.model={model} does not divide {name} of shape {list(shape)}, which the rule "
            f"{pattern!r} splits as {axes}"
        )
    spec = tuple(None if axis == "fsdp" else axis for axis in axes)
    fsdp = mesh.shape["fsdp"]
    for i, axis in enumerate(axes):
        if axis == "fsdp" and shape[i] % fsdp == 0:
            return (*spec[:i], "fsdp", *spec[i + 1 :])
    return _widest(shape, mesh, spec) if "fsdp" in axes else spec


def _widest(
    shape: tuple[int, ...], mesh: Mesh, spec: tuple[str | None, ...]
) -> tuple[str | None, ...]:
    """Puts 'fsdp' on the widest unsplit dimension that it divides, if any."""
    free = [i for i, n in enumerate(shape) if spec[i] is None and n % mesh.shape["fsdp"] == 0]
    if not free:
        return spec
    widest = max(free, key=lambda i: shape[i])
    return (*spec[:widest], "fsdp", *spec[widest + 1 :])


def _require_use(rules: Sequence[Rule], names: Iterable[str]) -> None:
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise UserError(
                f"the sharding rule {pattern!r} matches no parameter.{suggest(pattern, names)}"
            )


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays onto the devices; every process must hold each array whole."""
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i]),
        tree,
        shardings,
    )


def to_devices(batches: Iterable[Any], sharding: NamedSharding, ahead: int) -> Ahead[Any]:
    """The same batches on the devices, of which a thread transfers `ahead` before they are needed.

    Each process provides its own rows of the global batch. The caller closes what is returned
    before it closes `batches`.
    """

    def put(batch: Any) -> Any:
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    return Ahead(map(put, batches), max(ahead, 1))

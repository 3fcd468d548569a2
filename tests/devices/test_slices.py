"""Meshes over several GPU nodes or TPU slices: which axis goes over them, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.devices.sharding import make_mesh, slices
from vit_jax.errors import UserError
from vit_jax.plan import topology, traffic


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a mesh looks at of one of JAX's GPUs."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


def gpus(nodes: int, per_node: int, per_process: int = 1) -> list[Gpu]:
    """In no good order: JAX promises none across nodes."""
    places = [(node, i) for i in range(per_node) for node in reversed(range(nodes))]
    return [
        Gpu(node * per_node + i, (node * per_node + i) // per_process, node) for node, i in places
    ]


def tpus(name: str):
    pytest.importorskip("libtpu")
    return topology.devices(name)


def assert_inner_axes_stay_within(mesh: jax.sharding.Mesh, count: int) -> None:
    rows = mesh.devices.reshape(mesh.shape["data"], -1)
    owners = [{device.slice_index for device in row} for row in rows]
    assert all(len(owner) == 1 for owner in owners)
    # Every slice has the same number of rows, and they lie side by side.
    assert [min(owner) for owner in owners] == [
        number for number in range(count) for _ in range(len(rows) // count)
    ]
    assert len({device.id for device in rows.flat}) == rows.size


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (32, 1, 1)),
        ({"fsdp": 8}, (4, 8, 1)),
        ({"fsdp": 4, "model": 2}, (4, 4, 2)),
        ({"model": 2}, (16, 1, 2)),
        ({"data": 8, "fsdp": -1}, (8, 4, 1)),
        ({"data": 16, "fsdp": 1, "model": 2}, (16, 1, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("per_process", [1, 8])
def test_four_nodes_of_eight(sizes, shape, per_process):
    mesh = make_mesh(sizes, gpus(4, 8, per_process))
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert mesh.devices.shape == shape
    assert_inner_axes_stay_within(mesh, 4)


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("2*v5e:4x4", {}, (32, 1, 1)),
        ("2*v5e:16x16", {"fsdp": 128}, (4, 128, 1)),
        ("4*v5e:4x4", {"fsdp": 8, "model": 2}, (4, 8, 2)),
        ("2*v4:2x2x2", {"fsdp": 4}, (4, 4, 1)),
        ("4*v5p:2x2x1", {"model": 4}, (4, 1, 4)),
        ("3*tpu7x:2x2x1", {"fsdp": 8}, (3, 8, 1)),
    ],
)
def test_slices_that_the_tpu_compiler_describes(name, sizes, shape):
    mesh = make_mesh(sizes, tpus(name))
    assert mesh.devices.shape == shape
    assert_inner_axes_stay_within(mesh, int(name[0]))


@pytest.mark.parametrize(
    ("sizes", "devices", "message"),
    [
        ({"fsdp": 16}, gpus(4, 8), "'data': 2, 'fsdp': 16, 'model': 1} does not fit 4 slices"),
        ({"fsdp": 16}, gpus(4, 8), "fsdp × model must divide 8, and 'data' be a multiple of 4"),
        ({"data": 2, "model": -1}, gpus(4, 8), "of 8 devices"),
        ({"fsdp": 5}, gpus(4, 8), "does not fit 32 devices"),
        ({}, gpus(4, 8)[:-1], "4 slices (TPU slices or GPU nodes) of different sizes, 7 to 8"),
    ],
)
def test_what_does_not_divide_is_one_message(sizes, devices, message):
    with pytest.raises(UserError) as error:
        make_mesh(sizes, devices)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_devices_of_one_machine_are_one_slice():
    assert slices(jax.devices()) == [jax.devices()]


@pytest.mark.parametrize(
    "name", ["0*v5e:2x2", "*v5e:2x2", "2*v9:2x2", "2v5e:2x2", "2*v5e", "-1*v5e:2x2"]
)
def test_names_of_several_slices(name):
    with pytest.raises(UserError, match="or 2\\*v5e:4x4 for two slices"):
        topology.devices(name)


def test_what_goes_between_slices_is_counted_apart():
    """By the TPU's compiler: a step of gradient descent on two slices of four chips."""
    mesh = make_mesh({"fsdp": 2}, tpus("2*v5e:2x2"))
    weights, images = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P(("data", "fsdp")))

    def step(w, x):
        return w - jax.grad(lambda w: jnp.mean(jnp.tanh(x @ w)))(w)

    def array(rows):
        return jax.ShapeDtypeStruct((rows, 256), jnp.float32)

    jitted = jax.jit(step, in_shardings=(weights, images), out_shardings=weights)
    counted = traffic.count(jitted.lower(array(256), array(64)).compile().as_text())
    # The gradients are summed inside each slice first. Each of its four chips then hands a quarter
    # of the sum over, and all chips inside the slice gather what comes back.
    size = 256 * 256 * 4
    assert counted.collectives["all-reduce between slices"] == (1, size // 4)
    assert counted.bytes_between_slices == size // 4
    assert counted.classes["all-reduce between slices"].count == 1
    assert counted.collectives["all-gather"][1] > 0
    assert counted.unread == 0

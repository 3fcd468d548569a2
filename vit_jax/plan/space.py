"""The settings that trade time for memory, for a config on some devices.

The settings are: the tensors that are computed twice, the number of parts into which the batch is
cut, and the number of devices over which the state is split.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax import models
from vit_jax.devices.shard_sizes import unsplit
from vit_jax.devices.sharding import batch_shards, make_mesh, param_shardings
from vit_jax.input_pipeline.recipes import image_shape
from vit_jax.layers.remat import marked
from vit_jax.overrides import changed
from vit_jax.plan import compiling

# Values of fields of the config, by their dotted names.
Settings = dict[str, Any]

_PARTS = (1, 2, 4, 8)
# Least number of images that a device gets of a part of the batch; fewer leave it partly idle.
_LEAST_IMAGES = 8
# From one size of the fsdp axis to the next that is tried.
_STRIDE = 16


def remat(config: Any) -> tuple[str, tuple[bool | str, ...]]:
    """The field, and its values from the fastest to the most sparing.

    Between nothing and everything stand the tensors that the model's blocks mark: all of them, and
    all but the hidden layers of MLPs, which are the largest.
    """
    nested = config.model.get("transformer") is not None
    marked = _marked(config)
    kept = [",".join(marked), ",".join(name for name in marked if name != "mlp")]
    values = dict.fromkeys([False, *filter(None, kept), True])
    return "model.transformer.remat" if nested else "model.remat", tuple(values)


def _marked(config: Any) -> tuple[str, ...]:
    """Names of tensors that rematerialised blocks of the model can keep."""
    model = models.from_config(config.model, num_classes=1)
    image = jax.ShapeDtypeStruct((1, *image_shape(config.pp)), "float32")
    trace = jax.make_jaxpr(lambda x: model.init(jax.random.key(0), x, train=False))
    return marked(trace(image).jaxpr)


def parts(config: Any, devices: Sequence[Any]) -> tuple[int, ...]:
    """Values of accum_steps."""
    images = config.batch // batch_shards(mesh(config, devices))
    return tuple(n for n in _PARTS if n == 1 or (images % n == 0 and images // n >= _LEAST_IMAGES))


def fsdp_sizes(config: Any, devices: Sequence[Any], num_classes: int) -> tuple[int, ...]:
    """1, and a few sizes that split the parameters into shards of a useful size."""
    whole = mesh(config, devices)
    once = changed(config, {"accum_steps": 1})
    params = compiling.shapes(compiling.build(once, whole, num_classes)).params
    rules, sizes, largest = tuple(map(tuple, config.sharding_rules)), [1], 1
    for size in (n for n in range(2, batch_shards(whole) + 1) if batch_shards(whole) % n == 0):
        split = mesh(config, devices, fsdp=size)
        if unsplit(params, param_shardings(params, split, rules), split) is None:
            largest = size
            sizes += [size] if size >= _STRIDE * sizes[-1] else []
    return tuple(dict.fromkeys([*sizes, largest]))


def mesh(config: Any, devices: Sequence[Any], fsdp: int = 1) -> Mesh:
    return make_mesh({**config.mesh, "data": -1, "fsdp": fsdp}, devices)

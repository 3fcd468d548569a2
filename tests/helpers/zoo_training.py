"""What a model of the survey does in training, and its maps, beside the reference."""

from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from flax import linen as nn
from zoo_cases import Case

from vit_jax.checkpoint import from_torch
from vit_jax.layers.drop import DropPath
from vit_jax.layers.head import HEADS, heads_of
from vit_jax.tree import arrays


class Step(NamedTuple):
    """`outputs`: logits, one array a head; `statistics`: those of BatchNorm by our names."""

    outputs: tuple[np.ndarray, ...]
    statistics: dict[str, np.ndarray]


def our_step(case: Case) -> Step:
    """One forward pass in training mode, in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), case.variables)

        def forward(variables, images):
            collections = ["batch_stats", HEADS]
            return case.model.apply(variables, images, train=True, mutable=collections)

        output, state = jax.device_get(jax.jit(forward)(wide, case.images))
    assert output.shape == (len(case.images), case.num_classes)
    return Step(heads_of(output, state), arrays(state.get("batch_stats", {})))


def their_step(case: Case) -> Step:
    """The reference's, with a head for distillation where it has one."""
    module: Any = case.reference().double().train()
    if hasattr(module, "set_distilled_training"):
        module.set_distilled_training(True)
    with torch.no_grad():
        output = module(torch.from_numpy(case.images).permute(0, 3, 1, 2))
    state = {name: x.numpy() for name, x in module.state_dict().items()}
    variables = from_torch(state, case.config, case.layout)
    outputs = output if isinstance(output, tuple) else (output,)
    return Step(tuple(x.numpy() for x in outputs), arrays(variables.get("batch_stats", {})))


def values_per_channel(case: Case, ours: Step, theirs: Step) -> dict[str, float]:
    """How many values a BatchNorm had for a channel, told from the two running variances.

    PyTorch's new value is N / (N - 1) times ours, and both weigh it with 0.1.
    """
    found = {}
    for name, x in ours.statistics.items():
        if name.endswith("/var"):
            before = 0.9 * case.flat[name].astype(np.float64)
            ratio = (theirs.statistics[name] - before) / (x - before)
            np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3, err_msg=name)
            found[name] = 1 / (1 - 1 / ratio.mean())
    return found


def drop_rates(model: nn.Module, size: tuple[int, int]) -> dict[str, tuple[float, int]]:
    """Probability, and how many are drawn, of each residual branch by its path, in order."""
    found = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, DropPath):
            found["/".join(context.module.path)] = (float(args[1]), len(args[0]))
        return call(*args, **kwargs)

    def run(images):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        with nn.intercept_methods(record):
            return model.init_with_output(keys, images, train=True)

    jax.eval_shape(run, jax.ShapeDtypeStruct((2, *size, 3), "float32"))
    return found

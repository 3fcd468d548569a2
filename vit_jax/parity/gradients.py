"""`compare_gradients`: the gradient of every parameter against PyTorch's autograd, in float64."""

import dataclasses
from typing import Any

import numpy as np

from vit_jax.parity.task import Task, in_our_names, our_loss, their_loss, their_module
from vit_jax.parity.tensors import TensorError, relative, tensor_errors, worst
from vit_jax.variables import arrays

GRADIENT_BAR = 1e-9


@dataclasses.dataclass(frozen=True)
class Gradients:
    """What backpropagation through both models gave.

    Attributes:
      loss, their_loss: The losses that were differentiated.
      tensors: Every parameter that the reference trains, the worst first.
      missing: Our parameters that the reference lacks or keeps fixed.
    """

    loss: float
    their_loss: float
    tensors: tuple[TensorError, ...]
    missing: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """The largest error of a gradient."""
        return worst(self.tensors)

    @property
    def same(self) -> bool:
        """Whether the losses and all gradients are."""
        bar = relative(self.loss, self.their_loss) <= GRADIENT_BAR
        return bar and bool(self.tensors) and self.error <= GRADIENT_BAR

    @property
    def verdict(self) -> str:
        return "same" if self.same else "differs"

    @property
    def summary(self) -> dict[str, Any]:
        """JSON-ready, what is computed from the fields."""
        return {"error": self.error, "verdict": self.verdict}


Ours = tuple[float, dict[str, np.ndarray]]  # the loss, and gradients by name


def compare_gradients(task: Task) -> Gradients:
    """Differentiates the loss of the first batch by every parameter, on both sides."""
    return compared_with(task, our_gradients(task))


def compared_with(task: Task, ours: Ours) -> Gradients:
    """Our loss and gradients against the reference's."""
    (loss, gradients), (their_value, theirs) = ours, _theirs(task)
    missing = tuple(sorted(gradients.keys() - theirs.keys()))
    return Gradients(loss, their_value, tensor_errors(gradients, theirs), missing)


def our_gradients(task: Task) -> Ours:
    """The loss of the first batch, differentiated by JAX in float64."""
    import jax

    with jax.enable_x64(True):
        loss, variables = our_loss(task)

        @jax.jit
        def differentiated(params, rest, inputs, labels):
            return jax.value_and_grad(lambda p: loss({**rest, "params": p}, inputs, labels))(params)

        params = variables.pop("params")
        value, gradients = differentiated(params, variables, *next(task.steps))
        return float(value), dict(arrays(jax.device_get(gradients)))


def _theirs(task: Task) -> tuple[float, dict[str, tuple[str, np.ndarray]]]:
    module = their_module(task)
    loss = their_loss(task, module, task.batches[0], task.labels[0])
    loss.backward()
    gradients = {
        name: np.zeros(tuple(p.shape)) if p.grad is None else p.grad.numpy()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    return float(loss.detach()), in_our_names(task, module, gradients)

"""What both frameworks are trained on: batches, labels that are drawn, and one loss.

The loss is the mean cross entropy of the logits with the labels, in float64. A model without
classes gets some: its features times a fixed random projection. Tokens are averaged first, where a
model gives one row for each. Both models run as in evaluation, without dropout or stochastic depth,
which no two frameworks draw alike; BatchNorm normalises by its stored statistics, which do not
change.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.checkpoint import names
from vit_jax.errors import UserError
from vit_jax.families.registry import get as family_of
from vit_jax.parity.references import Library
from vit_jax.parity.subject import Subject, random_inputs
from vit_jax.parity.traces import call_torch

if TYPE_CHECKING:
    import torch
    from flax import linen as nn

_CLASSES = 10  # of a model that has none

# (variables, arrays of one batch, labels) to the loss, a scalar
Loss = Callable[[Any, Sequence[Any], Any], Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, the reference, and what both are shown.

    Attributes:
      subject: Our model's config and weights.
      reference: The library that ours is compared with.
      batches: For each step the model's inputs by name, images [N, H, W, C] in [-1, 1].
      labels: For each step the class of each example, [N].
      projection: [features, classes], for a model without classes; else None.
    """

    subject: Subject
    reference: Library
    batches: tuple[Mapping[str, np.ndarray], ...]
    labels: tuple[np.ndarray, ...]
    projection: np.ndarray | None = None

    @property
    def steps(self) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """The inputs in the order of the model's arguments, and the labels, of each batch."""
        for batch, labels in zip(self.batches, self.labels, strict=True):
            yield [wide(x) for x in batch.values()], labels

    @property
    def layout(self) -> str:
        """The layout of the reference's state dicts."""
        return names.torch_layout(self.subject.config, self.reference.layout)

    @property
    def never_trained(self) -> tuple[str, ...]:
        """Patterns of our parameters that no run trains: tables that are loaded with weights."""
        return family_of(self.subject.config).frozen(self.subject.config)


def draw(
    subject: Subject, reference: Library, *, width: int, steps: int, num_images: int, seed: int
) -> Task:
    """A task of so many batches.

    Args:
      subject, reference: As in `Task`.
      width: How many numbers the model gives for an example: its classes, or its features.
      steps: Batches.
      num_images: Images, or texts, in each.
      seed: What everything is drawn with.
    """
    rng = np.random.default_rng(seed)
    inputs = random_inputs(subject.config, subject.image_size, steps * num_images, seed)
    parts = {name: np.split(x, steps) for name, x in inputs.items()}
    classes = subject.num_classes or _CLASSES
    labels = rng.integers(0, classes, (steps, num_images))
    projection = None
    if not subject.num_classes:
        projection = rng.standard_normal((width, classes)) * width**-0.5
    batches = tuple({name: x[i] for name, x in parts.items()} for i in range(steps))
    return Task(subject, reference, batches, tuple(labels), projection)


def wide(x: np.ndarray) -> np.ndarray:
    """Floating point numbers in float64; others stay."""
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def our_loss(task: Task) -> tuple[Loss, Any]:
    """Our loss as a function of the variables, and the variables in float64.

    To be called, and used, where JAX computes in float64.
    """
    import jax
    import jax.numpy as jnp

    from vit_jax.models import from_config
    from vit_jax.train.losses import softmax_cross_entropy

    model: nn.Module = from_config(task.subject.config, num_classes=task.subject.num_classes)

    def loss(variables: Any, inputs: Sequence[Any], labels: Any) -> Any:
        output = model.apply(variables, *inputs, train=False)
        output = output[0] if isinstance(output, tuple) else output
        logits = output.reshape(output.shape[0], -1, output.shape[-1]).mean(1)
        if task.projection is not None:
            logits = logits @ task.projection
        one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        return jnp.mean(softmax_cross_entropy(logits, one_hot))

    return loss, jax.tree.map(wide, dict(task.subject.variables))


def their_loss(
    task: Task, module: "torch.nn.Module", batch: Mapping[str, np.ndarray], labels: np.ndarray
) -> "torch.Tensor":
    """The reference's loss, of a module in float64."""
    import torch

    output = task.reference.logits_of(call_torch(module, batch, np.float64))
    output = output[0] if isinstance(output, tuple) else output
    logits = output.flatten(1, -2).mean(1) if output.ndim > 2 else output
    if task.projection is not None:
        logits = logits @ torch.from_numpy(task.projection)
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))


def their_module(task: Task) -> "torch.nn.Module":
    """The reference in float64 with the subject's weights, its numerics made ours."""
    this = task.subject
    sizes = {"num_classes": this.num_classes, "image_size": this.image_size}
    module = task.reference.build(this.config, their_state(task), matched=True, **sizes)
    return module.double()


def live_names(task: Task, module: "torch.nn.Module") -> dict[str, str]:
    """The layout's names -> the module's, which another version of the library may spell so."""
    return names.respelled(module.state_dict(), task.subject.config, task.layout)


def in_our_names(
    task: Task, module: "torch.nn.Module", tensors: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, np.ndarray]]:
    """By our names: the layout's name, and the reference's numbers in our shape.

    Args:
      task: What is compared.
      module: The reference.
      tensors: By the module's names, in the shapes of its parameters; one that is left out is left
        out of the result.

    Raises:
      UserError: for a reference that holds two of our parameters as one, which trains otherwise.
    """
    this, live = task.subject, live_names(task, module)
    theirs = their_state(task)
    known = {name: live.get(name, name) for name in theirs}
    filled = {name: tensors.get(own, theirs[name]) for name, own in known.items()}
    imported = names.imported(filled, this.config, task.layout)
    rows = names.rows_for(filled, this.config, task.layout)
    found = {
        ours: (row.theirs, np.asarray(imported[ours]))
        for row in rows
        if known.get(row.theirs) in tensors
        for ours in row.ours
    }
    for ours, (name, x) in found.items():
        if x.shape != this.params[ours].shape:
            raise UserError(
                f"{task.reference.layout} holds a part of our {ours} {this.params[ours].shape} in "
                f"another parameter, beside {name} {x.shape}, and so trains otherwise; take "
                "another reference, --against"
            )
    return found


def their_state(task: Task) -> Mapping[str, np.ndarray]:
    """The subject's weights in the names of the reference's layout."""
    from vit_jax.checkpoint import to_torch

    return to_torch(task.subject.variables, task.subject.config, task.reference.layout)

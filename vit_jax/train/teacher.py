"""The teacher that a student learns from: any registered model, read from any checkpoint."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline import classes, recipes


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model that is shown images which were normalised for the student.

    Attributes:
      model: The linen module, which computes in the type of the run.
      variables: The collections that the model is applied with, on the host.
      scale, shift: [1, 1, 1, channels], which turn the student's normalisation into the teacher's:
        `images * scale + shift`.
      order: The teacher's output for each class of the student.
    """

    model: nn.Module
    variables: Any
    scale: np.ndarray
    shift: np.ndarray
    order: tuple[int, ...]

    def logits(self, variables: Any, images: jax.Array) -> jax.Array:
        """The student's images [N, H, W, C] to logits [N, K], which pass no gradient back."""
        # Mixing uses weights that add up to one, so mixed images may be normalised afterwards.
        images = images * self.scale + self.shift
        logits: Any = self.model.apply(variables, images, train=False)
        return jax.lax.stop_gradient(logits[:, np.array(self.order)])


def load_teacher(config: ConfigDict, class_names: Sequence[str]) -> Teacher | None:
    """The teacher of `config.distill`; None for a run without one.

    Args:
      config: A complete config.
      class_names: The names of the student's classes, in their order. Those of the teacher are
        matched by name, see `classes.match`.

    Raises:
      UserError: if no checkpoint is named or it cannot be read, if the teacher has other classes,
        or if the teacher does not take images of the student's size.
    """
    if config.distill.kind == "none":
        return None
    path, name = config.distill.teacher_checkpoint, config.distill.teacher
    if not path:
        raise UserError(
            f"distill.kind={config.distill.kind!r} needs --config.distill.teacher_checkpoint: a "
            "file or directory of any readable format, or the workdir of a run"
        )

    from vit_jax import inference

    loaded = inference.load_model(path, model=name)
    known = loaded.weights.model
    if known.num_classes != len(class_names):
        raise UserError(
            f"the teacher {path} tells {known.num_classes} classes apart, the dataset has "
            f"{len(class_names)}: it must be trained on the same ones"
        )
    order = classes.match(
        class_names,
        known.num_classes if known.class_names is None else known.class_names,
        dataset=str(config.dataset),
        model=f"the teacher {path}",
        by_position=config.distill.by_position,
        option="--config.distill.by_position=True",
    )
    _require_size(loaded, recipes.image_shape(config.pp), str(path))
    model = loaded.model.clone(dtype=jnp.dtype(config.dtype))
    scale, shift = _between(recipes.preprocess(config.pp), loaded)
    return Teacher(model, loaded.variables, scale, shift, tuple(order))


def _require_size(loaded: Any, shape: tuple[int, int, int], path: str) -> None:
    teacher = loaded.weights.model.preprocess
    height, width, channels = shape
    if channels != teacher.channels:
        raise UserError(
            f"the teacher {path} takes images of {teacher.channels} channels, and "
            f"--config.pp.channels gives the student {channels}"
        )
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    forward: Callable[..., Any] = loaded.model.apply
    try:
        jax.eval_shape(lambda v, x: forward(v, x, train=False), loaded.variables, image)
    except Exception as error:  # The model, Flax and JAX raise different types for bad shapes.
        raise UserError(
            f"the teacher {path} does not take images of {height}×{width} pixels, which "
            f"--config.pp.crop gives the student; it was trained on {teacher.size}. `vit-jax "
            f"convert {path} DST --to orbax --image-size {height}x{width}` resizes its positions"
        ) from error


def _between(student: Preprocess, loaded: Any) -> tuple[np.ndarray, np.ndarray]:
    """The scale and shift that turn the student's (x - mean) / std into the teacher's."""
    teacher = loaded.weights.model.preprocess
    scale = np.divide(student.std, teacher.std)
    shift = np.subtract(student.mean, teacher.mean) / teacher.std
    return _as_images(scale), _as_images(shift)


def _as_images(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).reshape(1, 1, 1, -1)

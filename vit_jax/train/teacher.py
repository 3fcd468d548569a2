"""The model that a student learns from: any registered one, from any checkpoint."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline import recipes


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model, as it sees images that were prepared for another.

    Attributes:
      model: In the type that the run computes in.
      variables: What it is applied with, on the host.
      scale, shift: [1, 1, 1, 3], the student's normalisation to the teacher's.
    """

    model: nn.Module
    variables: Any
    scale: np.ndarray
    shift: np.ndarray

    def logits(self, variables: Any, images: jax.Array) -> jax.Array:
        """[N, H, W, 3] as the student gets them to [N, K], through which no gradient goes."""
        # Images are mixed by shares that add up to one: normalising commutes with it.
        images = images * self.scale + self.shift
        logits: Any = self.model.apply(variables, images, train=False)
        return jax.lax.stop_gradient(logits)


def load_teacher(config: ConfigDict, num_classes: int) -> Teacher | None:
    """The teacher of `config.distill`; None for a run without one.

    Args:
      config: Complete.
      num_classes: Of the student.

    Raises:
      UserError: for a checkpoint that cannot be read, other classes, or images of a size that the
        teacher does not take.
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
    if known.num_classes != num_classes:
        raise UserError(
            f"the teacher {path} tells {known.num_classes} classes apart, the dataset has "
            f"{num_classes}: it must be trained on the same ones"
        )
    _require_size(loaded, config.pp.crop, str(path))
    model = loaded.model.clone(dtype=jnp.dtype(config.dtype))
    return Teacher(model, loaded.variables, *_between(recipes.preprocess(config.pp), loaded))


def _require_size(loaded: Any, size: int, path: str) -> None:
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    forward: Callable[..., Any] = loaded.model.apply
    try:
        jax.eval_shape(lambda v, x: forward(v, x, train=False), loaded.variables, image)
    except Exception as error:  # whatever the model, Flax or JAX has to say of shapes
        raise UserError(
            f"the teacher {path} does not take images of {size} pixels, which --config.pp.crop "
            f"gives the student; it was trained on {loaded.weights.model.preprocess.size}. "
            f"`vit-jax convert {path} DST --to orbax --image-size {size}` resizes its positions"
        ) from error


def _between(student: Preprocess, loaded: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift that turn (x - m) / s of the student into that of the teacher."""
    teacher = loaded.weights.model.preprocess
    scale = np.divide(student.std, teacher.std)
    shift = np.subtract(student.mean, teacher.mean) / teacher.std
    return _as_images(scale), _as_images(shift)


def _as_images(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).reshape(1, 1, 1, 3)

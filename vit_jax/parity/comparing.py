"""`compare`: our model and a reference on the same weights and images."""

import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import __version__
from vit_jax.families.family import Difference
from vit_jax.families.registry import config_of
from vit_jax.parity import figures, references, subject, task
from vit_jax.parity.figures import Comparison, Drift, Setting
from vit_jax.parity.gradients import compare_gradients
from vit_jax.parity.pixels import Pixels, compare_pixels
from vit_jax.parity.traces import Trace, trace_ours, trace_torch
from vit_jax.parity.training import Recipe, compare_training

_DTYPES = (np.float32, np.float64)  # in this order: a module widened to float64 is the same one
_LOGITS = references.Point("logits", "logits")


def compare(
    model: Any,
    *,
    weights: str | os.PathLike | Mapping[str, Any] | None = None,
    against: str | None = None,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    num_images: int = 4,
    seed: int = 0,
    gradients: bool = False,
    train: Recipe | None = None,
    preprocess: Sequence[str | os.PathLike] = (),
    on_step: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Runs our model and the reference on the same weights and images, in float64 and float32.

    Args:
      model: A registered name, a ModelSpec, a config mapping, or a linen module.
      weights: A checkpoint of any readable format, a run's workdir, or the nested parameters;
        None draws every one at random.
      against: A name of `references.REFERENCES`: 'timm', 'hf', …; None takes the one that the
        model's family was proven against.
      image_size: (height, width) in pixels; by default the weights', else the model's. Weights
        of another size get their position embeddings resized, on both sides.
      num_classes: Outputs of a model with random weights; by default the registered number. 0
        compares features.
      num_images: Random images, uniform in [-1, 1]; or so many texts, for models of texts.
      seed: What random weights and images are drawn with.
      gradients: Whether the gradient of every parameter is compared.
      train: The optimizer with which both are trained, if they are, on `num_images` a step.
      preprocess: Image files, whose pixels are compared as we and the libraries prepare them.
      on_step: Told what is done next.

    Raises:
      UserError: for an unknown model or reference, a reference that is not installed or has no
        such model, weights that are unreadable or not the model's, an image size that does not
        divide into patches.
    """
    against = against or references.default_for(config_of(model))
    reference = references.get(against)
    on_step("reading weights")
    this = subject.prepare(model, weights, image_size, num_classes, seed)
    inputs = subject.random_inputs(this.config, this.image_size, num_images, seed)
    # Paths that are wrong are found before minutes of computing.
    prepared = _pixels(this, preprocess, on_step)
    (matched, as_shipped), width = _settings(reference, this, inputs, on_step)
    drawn = functools.partial(
        task.draw, this, reference, width=width, num_images=num_images, seed=seed
    )
    found: dict[str, Any] = {"pixels": prepared}
    if gradients:
        on_step("gradients in float64")
        found["gradients"] = compare_gradients(drawn(steps=1))
    if train is not None:
        on_step(f"{train.steps} steps of training in float64")
        found["training"] = compare_training(drawn(steps=train.steps), train)
    return Comparison(
        model=this.name,
        against=against,
        weights=this.weights,
        image_size=this.image_size,
        num_images=num_images,
        matched=matched,
        as_shipped=as_shipped,
        notes=this.notes,
        versions=_versions(reference),
        **found,
    )


def _pixels(
    this: subject.Subject,
    images: Sequence[str | os.PathLike],
    on_step: Callable[[str], None],
) -> Pixels | None:
    if not images:
        return None
    on_step("pixels")
    return compare_pixels(this, images)


def _settings(
    reference: references.Library,
    this: subject.Subject,
    inputs: Mapping[str, np.ndarray],
    on_step: Callable[[str], None],
) -> tuple[list[Setting], int]:
    """The reference with matched numerics, and as shipped; one object where these are the same.

    And how many numbers the models give for an example.
    """
    from vit_jax.checkpoint import to_torch
    from vit_jax.models import from_config

    state = to_torch(this.variables, this.config, reference.layout)
    sizes = {"num_classes": this.num_classes, "image_size": this.image_size}
    model = from_config(this.config, num_classes=this.num_classes)
    ours, settings = [], []
    shipped = tuple(reference.differences(this.config))
    for matched in (True, False) if shipped else (True,):
        module = reference.build(this.config, state, matched=matched, **sizes)
        points = reference.points(this.config, module)
        theirs = []
        for dtype in _DTYPES:
            if matched:  # once is enough: ours is the same in both settings
                on_step(f"ours in {dtype.__name__}")
                paths = [point.ours for point in points]
                ours.append(trace_ours(model, this.variables, inputs, paths, dtype))
            name = f"{reference.layout} {'matched' if matched else 'as shipped'}"
            on_step(f"{name} in {dtype.__name__}")
            names = [point.theirs for point in points]
            theirs.append(trace_torch(module, inputs, names, dtype, reference.logits_of))
        settings.append(_setting(() if matched else shipped, points, ours, theirs))
    return [settings[0], settings[-1]], ours[0].logits.shape[-1]


def _setting(
    differences: tuple[Difference, ...],
    points: Sequence[references.Point],
    ours: Sequence[Trace],
    theirs: Sequence[Trace],
) -> Setting:
    """From traces in each of `_DTYPES`."""
    outputs = zip(*(trace.outputs for trace in (*ours, *theirs)), strict=True)
    *blocks, logits = (
        _drift(point, *output) for point, output in zip([*points, _LOGITS], outputs, strict=True)
    )
    agreement = figures.top1_agreement(ours[1].logits, theirs[1].logits)
    return Setting(differences, logits, tuple(blocks), agreement)


def _drift(
    point: references.Point,
    ours32: np.ndarray,
    ours64: np.ndarray,
    theirs32: np.ndarray,
    theirs64: np.ndarray,
) -> Drift:
    return Drift(
        ours=point.ours,
        theirs=point.theirs,
        error=figures.relative_error(ours64, theirs64),
        max_abs=figures.max_abs(ours64, theirs64),
        error_float32=figures.relative_error(ours32, theirs64),
        noise_float32=figures.relative_error(theirs32, theirs64),
    )


def _versions(reference: references.Library) -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "numpy", *reference.packages)
    return {"vit-jax": __version__, "python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in packages
    }

"""What is compared: a model's config, its weights, and the image size that these are for."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import edits, names
from vit_jax.checkpoint.source import open_source
from vit_jax.checkpoint.stacked import unstack_blocks
from vit_jax.errors import UserError
from vit_jax.families.family import Size, channels, is_head
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import ModelSpec, config_of, get, resolve, without_speed
from vit_jax.tree import arrays, unflatten
from vit_jax.variables import collections, named


@dataclasses.dataclass(frozen=True)
class Subject:
    """Attributes:
    name: What the model is called.
    config: Constructor fields of the model, its blocks not scanned.
    params: Flat, linen names, float32; running statistics among them.
    image_size: (height, width) in pixels.
    weights: Where the weights came from, in words.
    preprocess: How the weights want their images, at this size.
    registered: The name under which the weights are registered; None for those of a file.
    notes: What was done to them, or is to be known of them.
    """

    name: str
    config: dict[str, Any]
    params: dict[str, np.ndarray]
    image_size: tuple[int, int]
    weights: str
    preprocess: Preprocess = dataclasses.field(default_factory=Preprocess)
    registered: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, Any]:
        """The collections, nested, as models take them."""
        return collections(unflatten(self.params), names.statistics(self.config))

    @property
    def num_classes(self) -> int:
        return names.num_classes_of(names.shapes_of(self.params))


def prepare(
    model: Any,
    weights: str | os.PathLike | Mapping[str, Any] | None,
    image_size: tuple[int, int] | None,
    num_classes: int | None,
    seed: int,
) -> Subject:
    """Arguments as those of `compare`; raises UserError as it does."""
    spec = resolve(model) if isinstance(model, str) else model
    name = spec.name if isinstance(spec, ModelSpec) else None
    config = without_speed(config_of(model))
    name = str(name or config.get("model_name") or "model of its own")
    if weights is None:
        size = image_size or _own_size(spec, config)
        _require_whole_patches(config, size)
        if num_classes is None:
            default = spec.num_classes if isinstance(spec, ModelSpec) else 1000
            num_classes = int(getattr(model, "num_classes", default))
        shapes = names.expected_shapes(config, num_classes=num_classes, image_size=size)
        params, source = random_params(shapes, seed), f"random, seed {seed}"
        registered = spec.name if isinstance(spec, ModelSpec) else None
        way = dataclasses.replace(_own_preprocess(spec, config), size=size)
        return Subject(name, config, params, size, source, way, registered)
    if num_classes is not None:
        raise UserError("the weights tell the number of classes: leave num_classes out")
    if isinstance(weights, Mapping):
        params, size, source = arrays(unstack_blocks(named(weights))), None, "given"
        way = _own_preprocess(spec, config)
    else:
        with open_source(weights, model) as opened:
            # Copied: what a file's mapping gives may not outlive the file.
            params = {name: np.array(x, np.float32) for name, x in opened.params().items()}
            config, size = without_speed(opened.facts.require_model()), opened.facts.image_size
            way = opened.facts.model().preprocess
        source = str(weights)
    params = {k: np.asarray(x, np.float32) for k, x in params.items()}
    config = names.with_channels(config, names.shapes_of(params))
    size = size or _square_size(name, config, params)
    return _at_size(Subject(name, config, params, (0, 0), source, way), size, image_size)


def _own_size(spec: Any, config: Mapping[str, Any]) -> Size:
    if isinstance(spec, ModelSpec):
        return spec.preprocess.height_width
    return names.default_size(config)


def _own_preprocess(spec: Any, config: Mapping[str, Any]) -> Preprocess:
    own = spec.preprocess if isinstance(spec, ModelSpec) else Preprocess()
    return own.for_channels(channels(config))


def _square_size(
    name: str, config: Mapping[str, Any], params: Mapping[str, np.ndarray]
) -> Size | None:
    """What the parameters tell of the image size; UserError where they are no such model's."""
    try:
        return names.image_size_of(config, names.shapes_of(params))
    except UserError as error:
        raise UserError(f"these are no parameters of {name}: {error}") from None


def random_inputs(
    config: Mapping[str, Any], image_size: Size, count: int, seed: int
) -> dict[str, np.ndarray]:
    """A batch for each input of the model, in the order of its arguments.

    Images are uniform in [-1, 1]; tokens are any of the vocabulary but 0, with which the second
    half of each second text is filled up; kept patches are others for each image.
    """
    rng, found = np.random.default_rng(seed), {}
    for name, (shape, dtype) in names.one_of(config, image_size).items():
        shape = (count, *shape[1:])
        if name == "images":
            found[name] = rng.uniform(-1, 1, shape).astype(dtype)
            continue
        if name == "kept":
            patches = math.prod(names.grid_of(config, image_size) or (1,))
            order = rng.permuted(np.tile(np.arange(patches), (count, 1)), axis=1)
            found[name] = order[:, : shape[1]].astype(dtype)
            continue
        found[name] = rng.integers(1, names.vocabulary_size(config), shape, dtype)
        found[name][1::2, shape[1] // 2 :] = 0
    return found


def random_params(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Every parameter and statistic random, head and biases too: a zero hides what it multiplies.

    Kernels keep the variance of what they are applied to, as trained ones do, roughly: small ones
    would leave the activations where every GELU is linear.
    """
    rng = np.random.default_rng(seed)
    params = {}
    for name in sorted(shapes):
        shape = shapes[name]
        scale = _fan_in(name, shape) ** -0.5 if name.endswith("kernel") else 0.1
        params[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
        if name.endswith("scale"):
            params[name] += 1
        elif name.endswith("/var"):
            params[name] = np.abs(params[name]) + np.float32(0.5)
    return params


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    into_heads = name.endswith(("query/kernel", "key/kernel", "value/kernel"))  # [D, heads, d]
    return shape[0] if into_heads else math.prod(shape[:-1])


def _at_size(subject: Subject, old: Size | None, wanted: Size | None) -> Subject:
    """The weights, resized if an image size is asked for that is not theirs."""
    config, params = subject.config, subject.params
    notes = list(_notes(params))
    size = wanted or old
    if size is None:
        raise UserError(
            "the weights' patches form no square, and nothing tells the image size; give it"
        )
    if wanted is not None:
        _require_whole_patches(config, wanted)
        edit = edits.resized(config, names.shapes_of(params), old, wanted)
        if edit is not None:
            params = dict(names.applied(edit, params))
            notes.append(edit.step)
    names.check(config, names.shapes_of(params), size)
    way = dataclasses.replace(subject.preprocess, size=size)
    return dataclasses.replace(
        subject, params=params, image_size=size, preprocess=way, notes=tuple(notes)
    )


def _notes(params: Mapping[str, np.ndarray]) -> list[str]:
    notes = []
    head = [x for name, x in params.items() if is_head(name)]
    if head and not any(x.any() for x in head):
        notes.append("the head is all zero: its logits prove nothing, the blocks before it do")
    broken = sorted(name for name, x in params.items() if not np.isfinite(x).all())
    if broken:
        notes.append(f"not finite: {', '.join(broken[:5])}{' …' if len(broken) > 5 else ''}")
    return notes


def _require_whole_patches(config: Mapping[str, Any], image_size: Size) -> None:
    """UserError for an image that patches do not cover, which libraries refuse."""
    stride = get(config).stride
    if stride is None:
        return
    (height, width), (rows, columns) = image_size, stride(config)
    if height < rows or width < columns or height % rows or width % columns:
        raise UserError(
            f"an image of {height}×{width} (height × width) does not divide into patches of "
            f"{rows}×{columns} pixels; take multiples of {rows}"
        )

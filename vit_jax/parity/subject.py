"""What is compared: a model's config, its weights, and the image size that these are for."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import describe, resize_posembed
from vit_jax.checkpoint.shapes import param_shapes
from vit_jax.checkpoint.stacked import unstack_blocks
from vit_jax.checkpoint.tables.family import Size
from vit_jax.tree import arrays, unflatten
from vit_jax.checkpoint.zoo import default_size, expected_shapes, image_size_of, resize_edits
from vit_jax.errors import UserError
from vit_jax.families.registry import ModelSpec, family_of, is_google, resolve
from vit_jax.families.resize import Grid, square
from vit_jax.variables import collections, named

_POSITIONS = "Transformer/posembed_input/pos_embedding"
_MODULE_FIELDS = ("parent", "name", "num_classes")  # of a linen module, and no part of a config
_SPEED = ("scan", "remat", "dtype")  # fields that change no float32 or float64 result


@dataclasses.dataclass(frozen=True)
class Subject:
    """Attributes:
    name: Of the model.
    config: Constructor fields of the model, its blocks not scanned.
    params: Flat, linen names, float32; running statistics among them.
    image_size: (height, width) in pixels.
    weights: Where the weights came from, in words.
    notes: What was done to them, or is to be known of them.
    """

    name: str
    config: dict[str, Any]
    params: dict[str, np.ndarray]
    image_size: tuple[int, int]
    weights: str
    notes: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, Any]:
        """The collections, nested, as models take them."""
        return collections(unflatten(self.params))

    @property
    def num_classes(self) -> int:
        return describe.num_classes(describe.shapes_of(self.params))


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
    config = _plain(describe.config_of(model))
    name = str(name or config.get("model_name") or "model of its own")
    if weights is None:
        side = spec.preprocess.size if isinstance(spec, ModelSpec) else 224
        own = (side, side) if is_google(config) else default_size(config)
        size = image_size or own
        if num_classes is None:
            default = spec.num_classes if isinstance(spec, ModelSpec) else 1000
            num_classes = int(getattr(model, "num_classes", default))
        shapes = _shapes(config, num_classes, size)
        return Subject(name, config, random_params(shapes, seed), size, f"random, seed {seed}")
    if num_classes is not None:
        raise UserError("the weights tell the number of classes: leave num_classes out")
    if isinstance(weights, Mapping):
        tree = named(weights) if "params" in weights else weights
        params, grid, source = arrays(unstack_blocks(tree)), None, "given"
    else:
        params, config, grid = _read(pathlib.Path(weights), model)
        source = str(weights)
    params = {k: np.asarray(x, np.float32) for k, x in params.items()}
    this = Subject(name, config, params, (0, 0), source)
    if not is_google(config):
        return _survey_at_size(this, image_size)
    return _at_size(this, grid, image_size)


def _shapes(config: Mapping[str, Any], num_classes: int, size: Size) -> dict[str, Any]:
    if not is_google(config):
        return expected_shapes(config, num_classes=num_classes, image_size=size)
    return param_shapes(config, num_classes=num_classes, num_patches=math.prod(_grid(config, size)))


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


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor fields that decide what the model computes."""
    fields = {k: v for k, v in config.items() if k not in (*_MODULE_FIELDS, *_SPEED)}
    if fields.get("transformer") is not None:
        fields["transformer"] = {k: v for k, v in fields["transformer"].items() if k not in _SPEED}
    return fields


def _read(path: pathlib.Path, model: Any) -> tuple[dict[str, Any], dict[str, Any], Grid | None]:
    """Flat parameters, config and grid (None: to be told from the parameters) of a checkpoint."""
    if path.is_dir() and not (path / "config.json").exists():
        from vit_jax import inference

        weights = inference.load_weights(path)
        return arrays(weights.params), _plain(weights.config), None
    if not path.exists():
        raise UserError(f"no such file or directory {str(path)!r}; expected a checkpoint")

    from vit_jax.checkpoint.identify import grid_of
    from vit_jax.checkpoint.source import open_source

    with open_source(path, model) as source:
        # Copied: what a file's mapping gives may not outlive the file.
        params = {name: np.array(x, np.float32) for name, x in source.params().items()}
        assert source.config is not None  # `open_source` compared it with the model's
        return params, _plain(source.config), grid_of(source, describe.shapes_of(params))


def _at_size(subject: Subject, grid: Grid | None, wanted: tuple[int, int] | None) -> Subject:
    """The weights, resized if an image size is asked for that is not theirs."""
    config, params = subject.config, subject.params
    try:
        patches = describe.num_patches(config, describe.shapes_of(params))
    except KeyError as error:
        raise UserError(f"these are no parameters of {subject.name}: {error} is missing") from None
    stride = describe.downsampling(config)
    target = None if wanted is None else _grid(config, wanted)
    if target is not None and math.prod(target) == patches and grid is None:
        grid = target  # that many patches, and nothing says that they lie otherwise
    if target is not None and math.prod(target) != patches and family_of(config) == "mixer":
        raise UserError(
            f"the weights are for {patches} patches, an image of that size has "
            f"{math.prod(target)}: a Mixer takes one image size only"
        )
    grid = grid or square(patches, "the weights'")
    notes = list(_notes(params))
    if target is not None and target != grid:
        params = params | {
            _POSITIONS: resize_posembed(
                params[_POSITIONS], grid, target, int(describe.has_class_token(config))
            )
        }
        notes.append(f"position embeddings resized from {grid} to {target}, the official way")
        grid = target
    size = wanted or (grid[0] * stride, grid[1] * stride)
    return dataclasses.replace(subject, params=params, image_size=size, notes=tuple(notes))


def _survey_at_size(subject: Subject, wanted: Size | None) -> Subject:
    shapes = describe.shapes_of(subject.params)
    old = image_size_of(subject.config, shapes)
    if wanted in (None, old):
        return dataclasses.replace(subject, image_size=old, notes=tuple(_notes(subject.params)))
    edits = resize_edits(subject.config, shapes, old, wanted, "timm")
    params = subject.params | {name: edit(subject.params[name]) for name, edit in edits.items()}
    notes = _notes(params)
    if edits:
        notes.append(f"resized from images of {old} to {wanted} pixels, timm's way")
    return dataclasses.replace(subject, params=params, image_size=wanted, notes=tuple(notes))


def _notes(params: Mapping[str, np.ndarray]) -> list[str]:
    notes = []
    head = [x for name, x in params.items() if name.startswith("head")]
    if head and not any(x.any() for x in head):
        notes.append("the head is all zero: its logits prove nothing, the blocks before it do")
    broken = sorted(name for name, x in params.items() if not np.isfinite(x).all())
    if broken:
        notes.append(f"not finite: {', '.join(broken[:5])}{' …' if len(broken) > 5 else ''}")
    return notes


def _grid(config: Mapping[str, Any], image_size: tuple[int, int]) -> Grid:
    stride = describe.downsampling(config)
    height, width = image_size
    if height < stride or width < stride or height % stride or width % stride:
        raise UserError(
            f"an image of {height}×{width} (height × width) does not divide into patches of "
            f"{stride}×{stride} pixels; take multiples of {stride}"
        )
    return height // stride, width // stride

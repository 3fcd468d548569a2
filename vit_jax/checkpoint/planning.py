"""What becomes of a checkpoint on its way to another format: edits of it, and words for each.

Nothing is read or written here; edits are lazy, see `archive.Edited`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.checkpoint import describe, recorded, zoo
from vit_jax.checkpoint.files.archive import Edited
from vit_jax.checkpoint.identify import fitting_models, image_size_of
from vit_jax.checkpoint.source import Source, Tensors, specs_of
from vit_jax.checkpoint.tables import big_vision
from vit_jax.checkpoint.tables.family import Size
from vit_jax.class_names import class_names as known_class_names
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import family_of, is_google, resolve
from vit_jax.families.resize import resize_posembed

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
POSEMB = big_vision.POSEMB


@dataclasses.dataclass
class Plan:
    """What becomes of a source: config, edits of its linen tensors, and words for each."""

    source: Source
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    size: Size | None
    edits: list[Callable[[Tensors], Tensors]] = dataclasses.field(default_factory=list)
    steps: list[str] = dataclasses.field(default_factory=list)
    dropped: list[str] = dataclasses.field(default_factory=list)

    def linen(self, file: Tensors) -> Tensors:
        return functools.reduce(lambda x, edit: edit(x), self.edits, self.source.to_linen(file))

    def edit(self, step: str, edit: Callable[[Tensors], Tensors], **changes: Any) -> None:
        """Adds a step; `changes` are fields of the config."""
        self.edits.append(edit)
        self.steps.append(step)
        self.config |= changes
        specs = specs_of(self.linen, self.source.view.specs)
        self.shapes = {name: spec.shape for name, spec in specs.items()}

    @property
    def num_classes(self) -> int:
        return describe.num_classes(self.shapes)

    @property
    def image_size(self) -> Size:
        """(height, width) in pixels that the tensors are for."""
        if self.size is None:
            raise UserError(
                "the grid of patches is neither square nor recorded; give the image size"
            )
        return self.size

    @property
    def name(self) -> str:
        models = fitting_models(self.config)
        return recorded.model_name(self.source) or (models[0] if models else "custom")

    @property
    def class_names(self) -> list[str] | None:
        names = recorded.class_names(self.source)
        if names is None:
            names = known_class_names(self.num_classes)
        return names if names is not None and len(names) == self.num_classes else None

    @property
    def preprocess(self) -> Preprocess:
        found = recorded.preprocess(self.source)
        if found is None:
            survey = not is_google(self.config) and fitting_models(self.config)
            found = resolve(survey[0]).preprocess if survey else Preprocess()
        return dataclasses.replace(found, size=max(self.size)) if self.size else found

    def described(self) -> dict[str, Any]:
        """The model in the words of our own metadata."""
        fields = recorded.described(self.name, self.config, self.preprocess, self.class_names)
        return fields | {"image_size": self.size}


def planned(
    source: Source,
    image_size: Size | None,
    resize_method: str,
    num_classes: int | None,
    drop_pre_logits: bool,
    dtype: str | None,
) -> Plan:
    if source.config is None:
        raise UserError(f"{str(source.archive.path)!r}: {'; '.join(source.notes)}")
    source.require_heads()
    shapes = {name: spec.shape for name, spec in source.specs().items()}
    size = image_size_of(source, shapes)
    plan = Plan(source, dict(source.config), shapes, size)
    plan.steps += source.steps
    if drop_pre_logits:
        _drop_pre_logits(plan)
    if num_classes is not None:
        _replace_head(plan, num_classes)
    if image_size is not None:
        _resize(plan, image_size, resize_method)
    if dtype is not None:
        _cast(plan, dtype)
    return plan


def _drop_pre_logits(plan: Plan) -> None:
    gone = [n for n in plan.shapes if n.startswith("pre_logits/")]
    if not gone:
        return
    gone += [n for n in plan.shapes if n.startswith("head/")]
    plan.dropped += gone
    plan.edit(
        "pre_logits dropped, and the head that reads it",
        lambda x: Edited(x, dropped=gone),
        representation_size=None,
    )


def _replace_head(plan: Plan, num_classes: int) -> None:
    if num_classes < 0:
        raise UserError(f"a number of classes is 0 or more; got {num_classes}")
    gone = [n for n in plan.shapes if n.startswith("head")]
    norm = next(n for n in plan.shapes if n.endswith("scale"))
    dtype = plan.source.specs()[norm].dtype
    added = {
        name: lambda shape=shape: np.zeros(shape, dtype)
        for name, shape in _head_shapes(plan, num_classes).items()
    }
    plan.dropped += gone
    plan.edit(
        f"head replaced by zeros for {num_classes} classes" if num_classes else "head dropped",
        lambda x: Edited(x, dropped=gone, added=added),
    )


def _head_shapes(plan: Plan, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Of a head for so many classes, by name."""
    if not num_classes:
        return {}
    if not is_google(plan.config):
        sizes = {"num_classes": num_classes, "image_size": plan.image_size}
        shapes = zoo.expected_shapes(plan.config, **sizes)
        return {name: shape for name, shape in shapes.items() if name.startswith("head")}
    width = plan.config.get("representation_size") or describe.width(plan.config)
    return {"head/kernel": (width, num_classes), "head/bias": (num_classes,)}


def _resize(plan: Plan, new: Size, method: str) -> None:
    if not is_google(plan.config):
        _resize_survey(plan, new, method)
        return
    stride = describe.downsampling(plan.config)
    new_grid = new[0] // stride, new[1] // stride
    if min(new_grid) < 1:
        raise UserError(f"{new} pixels hold no patch of {stride}")
    if plan.size is None and math.prod(new_grid) == describe.num_patches(plan.config, plan.shapes):
        plan.size = new_grid[0] * stride, new_grid[1] * stride
    if plan.size is None:
        raise UserError("the file's grid of patches is neither square nor recorded in it")
    old_grid = plan.size[0] // stride, plan.size[1] // stride
    if new_grid == old_grid:
        return
    if family_of(plan.config) == "mixer":
        raise UserError("a Mixer cannot be resized: its token mixing is trained for one grid")
    prefix = int(describe.has_class_token(plan.config))
    plan.size = new_grid[0] * stride, new_grid[1] * stride
    plan.edit(
        f"position embeddings resized from {old_grid} to {new_grid}, method {method!r}",
        lambda x: Edited(
            x, changed={POSEMB: lambda p: resize_posembed(p, old_grid, new_grid, prefix, method)}
        ),
    )


def _resize_survey(plan: Plan, new: Size, method: str) -> None:
    old, plan.size = plan.image_size, new
    if new == old:
        return
    edits = zoo.resize_edits(plan.config, plan.shapes, old, new, method)
    if edits:
        plan.edit(
            f"resized from images of {old} to {new} pixels, method {method!r}: "
            f"{', '.join(list(edits)[:3])}{', …' if len(edits) > 3 else ''}",
            lambda x: Edited(x, changed=edits),
        )


def _cast(plan: Plan, dtype: str) -> None:
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")

    def cast(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # what overflows is reported as not finite
            return x.astype(DTYPES[dtype])

    plan.edit(f"cast to {dtype}", lambda x: Edited(x, changed=dict.fromkeys(x, cast)))

"""Any format to any format, tensor by tensor, with a record of every step.

The pipeline is a function from the file's tensors to the new file's, built of lazy mappings. It
runs twice: on empty tensors, which gives the new file's shapes and finds every error before a
byte is written, and on the real ones.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from vit_jax import __version__
from vit_jax.checkpoint import edits, facts, names, recorded, targets
from vit_jax.checkpoint.facts import Model
from vit_jax.checkpoint.names import LINEN, OFFICIAL, Tensors
from vit_jax.checkpoint.source import (
    OTHER_FUNCTION,
    Allow,
    Source,
    open_source,
    specs_of,
)
from vit_jax.errors import UserError
from vit_jax.families.family import Edit, Size
from vit_jax.families.registry import get


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
      src, dst: Paths.
      source_format, source_layout: As `identify` names them.
      to: The target.
      model: The model's name: registered, recorded, or 'custom'.
      num_tensors, num_params: How many the new file holds.
      steps: Whatever was done beyond renaming and reordering, in words.
      skipped: Tensors of SRC that are no parameters.
      dropped: Parameters of SRC that are not in DST (each by a step).
      not_finite: Tensor of DST -> how many of its numbers are NaN or infinite.
      notes: What a reader should know; DST records it.
      source_sha256: The hash of the file of weights.
    """

    src: str
    dst: str
    source_format: str
    source_layout: str
    to: str
    model: str
    num_tensors: int
    num_params: int
    steps: tuple[str, ...]
    skipped: tuple[str, ...]
    dropped: tuple[str, ...]
    not_finite: dict[str, int]
    notes: tuple[str, ...]
    source_sha256: str


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    to: str,
    model: Any = None,
    image_size: Size | None = None,
    resize_method: str | None = None,
    num_classes: int | None = None,
    drop_pre_logits: bool = False,
    channels: int | None = None,
    patch_size: Size | None = None,
    dtype: str | None = None,
    part: str | None = None,
    allow: Allow = (),
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Converts a checkpoint; holds a few tensors in memory at a time.

    Args:
      src: As for `open_source`: a file or directory of any readable format.
      dst: Replaced as a whole, or left as it was. A directory for 'orbax' and 'hf', else a file;
        timm's is safetensors unless it is called `.pth` or `.bin`.
      to: 'official', 'big_vision', 'orbax', 'timm', 'hf', or another layout of the family.
      model: Name or config of the model in `src`, where the file does not tell.
      image_size: (height, width) in pixels for which the weights are resized.
      resize_method: 'official', 'timm' or another of `resize_posembed`; None resizes as the
        family's own code does.
      num_classes: A new head of zeros in the place of the file's; 0 for none.
      drop_pre_logits: Whether to drop `pre_logits`, and with it the head that reads it.
      channels: The number of channels of the images that the new file is for, see
        `edits.with_channels`.
      patch_size: (height, width) in pixels of the new file's patches, see `edits.with_patches`.
        Without an image size there are as many of them.
      dtype: 'float32', 'float16' or 'bfloat16'; by default as stored.
      part: As for `open_source`.
      allow: As for `open_source`: 'other-function' goes on, too, where the target's library cannot
        be told to compute what the model does.
      progress: Called with (bytes written, bytes in all) after every tensor.

    Raises:
      UserError: if the source is unreadable, cannot be held by the target, or nothing can be
        written to `dst`.
    """
    target = targets.target_of(to)
    with open_source(src, model, image_size, part=part, allow=allow) as source:
        plan = _planned(
            source,
            image_size,
            resize_method,
            num_classes,
            drop_pre_logits,
            channels,
            patch_size,
            dtype,
        )
        layout = _layout(to, target, plan)
        _prepare(plan, layout)
        plan.notes += _unsaid(plan, to, layout, allow) + target.notes(plan, pathlib.Path(dst))
        export = functools.partial(names.exported, config=plan.config, layout=layout)
        tensors = targets.Watched(lambda file: export(plan.linen(file)), source, progress)

        def metadata(sha256: str) -> dict[str, str]:
            record = _record(source, to, plan, sha256)
            return {
                recorded.OURS: json.dumps(plan.model.metadata()),
                recorded.HISTORY: json.dumps([*source.facts.history, record]),
            }

        with targets.Hashing(source.archive.files, metadata) as hashing:
            target.write(pathlib.Path(dst), tensors, hashing, plan)
            sha256 = hashing.sha256()
        return Conversion(
            src=str(src),
            dst=str(dst),
            source_format=source.facts.format,
            source_layout=source.facts.layout,
            to=to,
            model=plan.model.name,
            num_tensors=len(tensors.specs),
            num_params=facts.count(plan.specs, plan.config),
            steps=tuple(plan.steps),
            skipped=source.facts.skipped,
            dropped=tuple(plan.dropped),
            not_finite=tensors.not_finite,
            notes=tuple(plan.notes),
            source_sha256=sha256,
        )


class Plan:
    """What becomes of a source: edits of its tensors (our names), and words for each."""

    def __init__(self, source: Source):
        self.source = source
        self.config = dict(source.facts.require_model())
        self.specs = dict(source.facts.tensors)
        self.size = source.facts.image_size
        self.edits: list[Edit] = []
        self.steps = list(source.facts.steps)
        self.dropped: list[str] = []
        self.notes = list(source.facts.notes)

    def linen(self, file: Tensors) -> Tensors:
        """The new tensors by our names, lazily, from the file's."""
        ours = self.source.to_linen(file)
        return functools.reduce(lambda x, edit: names.applied(edit, x), self.edits, ours)

    def edit(self, edit: Edit | None) -> None:
        """Adds an edit, if there is one."""
        if edit is None:
            return
        self.edits.append(edit)
        self.steps.append(edit.step)
        self.dropped += edit.dropped
        self.config |= edit.config
        self.specs = specs_of(self.linen, self.source.view.specs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: spec.shape for name, spec in self.specs.items()}

    @property
    def image_size(self) -> Size:
        """(height, width) in pixels that the tensors are for; (0, 0) where it takes no images."""
        if "images" not in get(self.config).inputs:
            return 0, 0
        if self.size is None:
            raise UserError(
                "the grid of patches is neither square nor recorded; give the image size"
            )
        return self.size

    @property
    def model(self) -> Model:
        """What must be known of the new file's model."""
        known = dataclasses.replace(
            self.source.facts,
            config=self.config,
            num_classes=names.num_classes_of(self.shapes),
            image_size=self.size,
            size_is_known=self.source.facts.size_is_known
            or self.size != self.source.facts.image_size,
        )
        return known.model()


def _planned(
    source: Source,
    image_size: Size | None,
    resize_method: str | None,
    num_classes: int | None,
    drop_pre_logits: bool,
    channels: int | None,
    patch_size: Size | None,
    dtype: str | None,
) -> Plan:
    plan = Plan(source)
    if drop_pre_logits:
        plan.edit(edits.without_pre_logits(plan.shapes))
    if num_classes is not None:
        stored = next(iter(plan.specs.values())).dtype
        size = plan.size
        plan.edit(edits.with_head(plan.config, plan.shapes, num_classes, size, stored))
    if channels is not None:
        plan.edit(edits.with_channels(plan.config, plan.shapes, channels))
    if patch_size is not None:
        grid = names.grid_of(plan.config, plan.size)
        plan.edit(edits.with_patches(plan.config, plan.shapes, patch_size))
        if grid is not None:
            plan.size = grid[0] * patch_size[0], grid[1] * patch_size[1]
    if image_size is not None:
        old = plan.size
        plan.edit(edits.resized(plan.config, plan.shapes, old, image_size, resize_method))
        plan.size = edits.covered(plan.config, image_size)
    if dtype is not None:
        plan.edit(edits.cast(plan.shapes, dtype))
    return plan


def _prepare(plan: Plan, layout: str) -> None:
    """The edit that the target's layout asks for."""
    before_writing = names.layout_of(plan.config, layout).before_writing
    if before_writing is None:
        return
    edit = before_writing(plan.config, plan.linen(plan.source.view), plan.size)
    if edit is not None and not (edit.changed or edit.dropped or edit.added):
        plan.steps.append(edit.step)
    else:
        plan.edit(edit)


def _unsaid(plan: Plan, to: str, layout: str, allow: Allow) -> list[str]:
    """Where the target's library computes otherwise, and nothing beside the weights can say so.

    Raises UserError unless that is allowed.
    """
    library = "transformers" if to == "hf" else to
    found = [
        f"{library} computes with another {d.what}: {d.shipped}, not {d.ours}"
        for d in names.layout_of(plan.config, layout).unsaid(plan.config)
    ]
    if found and OTHER_FUNCTION not in allow:
        raise UserError(
            f"the weights can be written, but the function not: {'; '.join(found)}. Go on all the "
            f"same with --allow {OTHER_FUNCTION}"
        )
    return found


def _layout(to: str, target: targets.Target, plan: Plan) -> str:
    """The layout of a target; UserError where the model's family does not go there."""
    layout = target.layout or to
    own = get(plan.config).layouts
    if layout not in (*own, OFFICIAL, LINEN):
        known = ", ".join(dict.fromkeys([*own, OFFICIAL]))
        raise UserError(f"{plan.model.name} has no layout {to!r}; it has {known}")
    return layout


def _record(source: Source, to: str, plan: Plan, sha256: str) -> dict[str, Any]:
    return {
        "tool": f"vit-jax {__version__}",
        "source": {
            "file": source.archive.path.name,
            "sha256": sha256,
            "format": source.facts.format,
            "layout": source.facts.layout,
            **({"origin": source.facts.origin} if source.facts.origin else {}),
        },
        "to": to,
        "steps": plan.steps,
        "notes": plan.notes,
    }

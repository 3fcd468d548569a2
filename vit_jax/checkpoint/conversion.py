"""Any format to any format, tensor by tensor, with a record of every step.

The pipeline is a function from the file's tensors to the new file's, built of lazy mappings. It
runs twice: on empty tensors, which gives the new file's shapes and finds every error before a
byte is written, and on the real ones.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from vit_jax import __version__
from vit_jax.checkpoint import beside, edits, facts, hf_dir, names, recorded
from vit_jax.checkpoint.facts import Model
from vit_jax.checkpoint.files.archive import replacing_directory
from vit_jax.checkpoint.files.formats import (
    write_npz,
    write_orbax,
    write_safetensors,
    write_torch,
)
from vit_jax.checkpoint.names import LINEN, OFFICIAL, Tensors
from vit_jax.checkpoint.source import (
    OTHER_FUNCTION,
    Allow,
    Source,
    count_not_finite,
    open_source,
    specs_of,
)
from vit_jax.errors import UserError
from vit_jax.families.family import Edit, HuggingFace, Size
from vit_jax.families.registry import families, get


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
      dtype: 'float32', 'float16' or 'bfloat16'; by default as stored.
      part: As for `open_source`.
      allow: As for `open_source`: 'other-function' goes on, too, where the target's library cannot
        be told to compute what the model does.
      progress: Called with (bytes written, bytes in all) after every tensor.

    Raises:
      UserError: if the source is unreadable, cannot be held by the target, or nothing can be
        written to `dst`.
    """
    target = target_of(to)
    with open_source(src, model, image_size, part=part, allow=allow) as source:
        plan = _planned(
            source, image_size, resize_method, num_classes, drop_pre_logits, channels, dtype
        )
        layout = _layout(to, target, plan)
        _prepare(plan, layout)
        plan.notes += _unsaid(plan, to, layout, allow) + target.notes(plan, pathlib.Path(dst))
        export = functools.partial(names.exported, config=plan.config, layout=layout)
        tensors = _Watched(lambda file: export(plan.linen(file)), source, progress)

        def metadata(sha256: str) -> dict[str, str]:
            record = _record(source, to, plan, sha256)
            return {
                recorded.OURS: json.dumps(plan.model.metadata()),
                recorded.HISTORY: json.dumps([*source.facts.history, record]),
            }

        with _Hashing(source.archive.files, metadata) as hashing:
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


class _Plan:
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
        """(height, width) in pixels that the tensors are for."""
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
    dtype: str | None,
) -> _Plan:
    plan = _Plan(source)
    if drop_pre_logits:
        plan.edit(edits.without_pre_logits(plan.shapes))
    if num_classes is not None:
        stored = next(iter(plan.specs.values())).dtype
        size = plan.size
        plan.edit(edits.with_head(plan.config, plan.shapes, num_classes, size, stored))
    if channels is not None:
        plan.edit(edits.with_channels(plan.config, plan.shapes, channels))
    if image_size is not None:
        old = plan.size
        plan.edit(edits.resized(plan.config, plan.shapes, old, image_size, resize_method))
        plan.size = edits.covered(plan.config, image_size)
    if dtype is not None:
        plan.edit(edits.cast(plan.shapes, dtype))
    return plan


def _prepare(plan: _Plan, layout: str) -> None:
    """The edit that the target's layout asks for."""
    before_writing = names.layout_of(plan.config, layout).before_writing
    if before_writing is None:
        return
    edit = before_writing(plan.config, plan.linen(plan.source.view), plan.size)
    if edit is not None and not (edit.changed or edit.dropped or edit.added):
        plan.steps.append(edit.step)
    else:
        plan.edit(edit)


def _unsaid(plan: _Plan, to: str, layout: str, allow: Allow) -> list[str]:
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


class _Watched(Mapping[str, np.ndarray]):
    """The new file's tensors, counting as they pass what is written and what is not finite."""

    def __init__(
        self,
        pipeline: Callable[[Tensors], Tensors],
        source: Source,
        progress: Callable[[int, int], None] | None,
    ):
        self.specs = specs_of(pipeline, source.view.specs)
        self.not_finite: dict[str, int] = {}
        self._tensors, self._progress = pipeline(source.view), progress
        self._done, self._all = 0, sum(spec.nbytes for spec in self.specs.values())

    def __getitem__(self, name: str) -> np.ndarray:
        x = self._tensors[name]
        if bad := count_not_finite(x):
            self.not_finite[name] = bad
        self._done += x.nbytes
        if self._progress:
            self._progress(self._done, self._all)
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


class _Hashing:
    """The metadata of a conversion, while a thread takes the hash of the source. A context manager.

    Hashing takes as long as converting: what can wait for it writes a draft first.
    """

    def __init__(self, files: tuple[pathlib.Path, ...], metadata: Callable[[str], dict[str, str]]):
        self._metadata = metadata
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._sha256 = self._thread.submit(_sha256, files)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._thread.shutdown()

    def sha256(self) -> str:
        return self._sha256.result()

    def draft(self) -> dict[str, str]:
        """Metadata that is exactly as long as the final one, with zeros in place of the hash."""
        return self._metadata("0" * hashlib.sha256().digest_size * 2)

    def final(self) -> dict[str, str]:
        return self._metadata(self.sha256())


def _write_orbax(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, _: _Plan) -> None:
    write_orbax(dst, tensors, hashing.final())


def _write_npz(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, _: _Plan) -> None:
    metadata = hashing.final()
    write_npz(dst, tensors, recorded.fitting_npz(metadata))


def _npz_notes(plan: _Plan, _: pathlib.Path) -> list[str]:
    metadata = {recorded.OURS: json.dumps(plan.model.metadata())}
    if recorded.fitting_npz(metadata) == metadata:
        return []
    return ["the class names are left out: an npz file has no room for them"]


def _write_timm(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, plan: _Plan) -> None:
    if dst.suffix in _PICKLED:
        write_torch(dst, dict(tensors))
        return
    model = plan.model
    described = beside.timm_description(
        plan.config,
        num_classes=model.num_classes,
        image_size=plan.image_size,
        preprocess=model.preprocess,
    )
    fields = {"format": "pt", recorded.TIMM: json.dumps(described)}
    _write_hashed(dst, tensors, hashing, fields)


def _timm_notes(plan: _Plan, dst: pathlib.Path) -> list[str]:
    if dst.suffix in _PICKLED:
        return _state_dict_notes(plan, dst)
    return beside.preprocessing_differences(plan.model.preprocess)


def _state_dict_notes(_: _Plan, dst: pathlib.Path) -> list[str]:
    if dst.suffix not in _PICKLED:
        return []
    return [
        f"a {dst.suffix} file holds tensors only: neither the model, nor its preprocessing, nor "
        "what was done here is recorded in it"
    ]


def _write_hashed(
    path: pathlib.Path, tensors: _Watched, hashing: _Hashing, fields: dict[str, str]
) -> None:
    write_safetensors(
        path,
        tensors,
        {**fields, **hashing.draft()},
        tensors.specs,
        late=lambda: {**fields, **hashing.final()},
    )


def _write_hf(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, plan: _Plan) -> None:
    """A whole directory takes the place of `dst`, which must be one of ours or absent."""
    if dst.exists() and not (dst / hf_dir.CONFIG).exists():
        raise UserError(f"{str(dst)!r} exists and is no Hugging Face directory; it is left alone")
    layout = names.layout_of(plan.config, "hf")
    build: HuggingFace = layout.build
    dtypes = {spec.dtype.name for spec in tensors.specs.values()}
    model = plan.model
    config = hf_dir.config_json(
        plan.config,
        build,
        image_size=plan.image_size,
        num_classes=model.num_classes,
        class_names=model.class_names,
        dtype=dtypes.pop() if len(dtypes) == 1 else "float32",
    )
    files = {
        hf_dir.CONFIG: config,
        hf_dir.PREPROCESSOR: hf_dir.preprocessor_json(model.preprocess, plan.image_size),
    }
    with replacing_directory(dst) as folder:
        for name, fields in files.items():
            (folder / name).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
        _write_hashed(folder / hf_dir.WEIGHTS, tensors, hashing, {"format": "pt"})


def _hf_notes(plan: _Plan, _: pathlib.Path) -> list[str]:
    return hf_dir.preprocessing_differences(plan.model.preprocess, plan.image_size)


def _write_state_dict(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, plan: _Plan) -> None:
    """A library's names in a file, without what else that library keeps beside its weights."""
    if dst.suffix in _PICKLED:
        write_torch(dst, dict(tensors))
    else:
        _write_hashed(dst, tensors, hashing, {"format": "pt"})


class Target(NamedTuple):
    """A format to convert to.

    Attributes:
      suffixes: How its files are called; () for a directory.
      write: What writes them.
      layout: Whose names they have; None for that of the target's own name.
      notes: What a reader of the file should know, in words; the file is named too.
    """

    suffixes: tuple[str, ...]
    write: Callable[[pathlib.Path, _Watched, _Hashing, _Plan], None]
    layout: str | None = None
    notes: Callable[[_Plan, pathlib.Path], list[str]] = lambda plan, dst: []


_PICKLED = (".pth", ".bin")  # files of torch, which hold tensors and nothing else
_STATE_DICT = (".safetensors", *_PICKLED)
_KNOWN = {
    "official": Target((".npz",), _write_npz, OFFICIAL, _npz_notes),
    "big_vision": Target((".npz",), _write_npz, notes=_npz_notes),
    "orbax": Target((), _write_orbax, LINEN),
    "timm": Target(_STATE_DICT, _write_timm, notes=_timm_notes),
    "hf": Target((), _write_hf, notes=_hf_notes),
}


@functools.cache
def targets() -> dict[str, Target]:
    """Every target by name: those above, and the layouts of other libraries."""
    others = {layout for family in families().values() for layout in family.layouts} - {*_KNOWN}
    other = Target(_STATE_DICT, _write_state_dict, notes=_state_dict_notes)
    return _KNOWN | dict.fromkeys(sorted(others), other)


def target_of(to: str) -> Target:
    """The target of that name; UserError for an unknown one."""
    if to not in targets():
        raise UserError(f"unknown format {to!r}; known: {', '.join(targets())}")
    return targets()[to]


def _layout(to: str, target: Target, plan: _Plan) -> str:
    """The layout of a target; UserError where the model's family does not go there."""
    layout = target.layout or to
    own = get(plan.config).layouts
    if layout not in (*own, OFFICIAL, LINEN):
        known = ", ".join(dict.fromkeys([*own, OFFICIAL]))
        raise UserError(f"{plan.model.name} has no layout {to!r}; it has {known}")
    return layout


def _record(source: Source, to: str, plan: _Plan, sha256: str) -> dict[str, Any]:
    return {
        "tool": f"vit-jax {__version__}",
        "source": {
            "file": source.archive.path.name,
            "sha256": sha256,
            "format": source.facts.format,
            "layout": source.facts.layout,
        },
        "to": to,
        "steps": plan.steps,
        "notes": plan.notes,
    }


def _sha256(files: tuple[pathlib.Path, ...]) -> str:
    """The hash of one file's bytes; for several, or a directory, of what `sha256sum` prints."""
    if len(files) == 1 and not files[0].is_dir():
        with open(files[0], "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    folder = files[0] if files[0].is_dir() else files[0].parent
    inside = folder.rglob("*") if files[0].is_dir() else files
    names = sorted(p.relative_to(folder).as_posix() for p in inside if p.is_file())
    lines = [f"{_sha256((folder / name,))}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()

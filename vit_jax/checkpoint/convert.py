"""Any format to any format, tensor by tensor, with a record of every step.

The pipeline is a function from the file's tensors to the new file's, built of lazy mappings. It
runs twice: on empty tensors, which gives the new file's shapes and finds every error before a
byte is written, and on the real ones.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax import __version__
from vit_jax.checkpoint import describe, hf_dir, recorded
from vit_jax.checkpoint.archive import Edited, replacing_directory
from vit_jax.checkpoint.formats import write_npz, write_orbax, write_safetensors, write_torch
from vit_jax.checkpoint.identify import fitting_models, grid_of
from vit_jax.checkpoint.resize import Grid, resize_posembed
from vit_jax.checkpoint.rules import Exported
from vit_jax.checkpoint.source import Source, Tensors, open_source, specs_of
from vit_jax.checkpoint.tables import big_vision, released
from vit_jax.checkpoint.timm_file import timm_description
from vit_jax.checkpoint.torch_names import exported
from vit_jax.class_names import class_names as known_class_names
from vit_jax.errors import UserError
from vit_jax.models.preprocess import Preprocess
from vit_jax.models.registry import family_of

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
POSEMB = big_vision.POSEMB


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
      src, dst: Paths.
      source_format, source_layout: As `identify` names them.
      to: The target.
      model: The model's name: registered, recorded, or 'custom'.
      num_tensors, num_params: Of the new file.
      steps: Whatever was done beyond renaming and reordering, in words.
      skipped: Tensors of SRC that are no parameters.
      dropped: Parameters of SRC that are not in DST (each by a step).
      not_finite: Tensor of DST -> how many of its numbers are NaN or infinite.
      notes: What a reader should know.
      source_sha256: Of the file of weights.
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
    image_size: Grid | None = None,
    resize_method: str = "official",
    num_classes: int | None = None,
    drop_pre_logits: bool = False,
    dtype: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Converts a checkpoint; holds a few tensors in memory at a time.

    Args:
      src: As for `open_source`: a file or directory of any readable format.
      dst: Replaced as a whole, or left as it was. A directory for 'orbax' and 'hf', else a file;
        timm's is safetensors unless it is called `.pth` or `.bin`.
      to: 'official', 'big_vision', 'orbax', 'timm' or 'hf'.
      model: Name or config of the model in `src`, where the file does not tell.
      image_size: (height, width) in pixels for which position embeddings are resized.
      resize_method: 'official' or 'timm', as `resize_posembed`.
      num_classes: A new head of zeros in the place of the file's; 0 for none.
      drop_pre_logits: Whether to drop `pre_logits`, and with it the head that reads it.
      dtype: 'float32', 'float16' or 'bfloat16'; by default as stored.
      progress: Called with (bytes written, bytes in all) after every tensor.

    Raises:
      UserError: if the source is unreadable, cannot be held by the target, or nothing can be
        written to `dst`.
    """
    if to not in _TARGETS:
        raise UserError(f"unknown format {to!r}; known: {', '.join(_TARGETS)}")
    with open_source(src, model, image_size) as source:
        plan = _planned(source, image_size, resize_method, num_classes, drop_pre_logits, dtype)
        name_tensors, write = _TARGETS[to]
        export = name_tensors(plan)
        tensors = _Watched(lambda file: export(plan.linen(file)), source, progress)

        def metadata(sha256: str) -> dict[str, str]:
            record = _record(source, to, plan.steps, sha256)
            return {
                recorded.OURS: json.dumps(plan.described()),
                recorded.HISTORY: json.dumps([*recorded.history(source), record]),
            }

        with _Hashing(source.archive.path, metadata) as hashing:
            write(pathlib.Path(dst), tensors, hashing, plan)
            sha256 = hashing.sha256()
        return Conversion(
            src=str(src),
            dst=str(dst),
            source_format=source.format,
            source_layout=source.layout,
            to=to,
            model=plan.name,
            num_tensors=len(tensors.specs),
            num_params=sum(math.prod(s.shape) for s in tensors.specs.values()),
            steps=tuple(plan.steps),
            skipped=tuple(source.skipped),
            dropped=tuple(plan.dropped),
            not_finite=tensors.not_finite,
            notes=tuple(source.notes),
            source_sha256=sha256,
        )


@dataclasses.dataclass
class _Plan:
    """What becomes of a source: config, edits of its linen tensors, and words for each."""

    source: Source
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    grid: Grid | None
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
    def image_size(self) -> Grid:
        if self.grid is None:
            raise UserError(
                "the grid of patches is neither square nor recorded; give the image size"
            )
        stride = describe.downsampling(self.config)
        return self.grid[0] * stride, self.grid[1] * stride

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
        found = recorded.preprocess(self.source) or Preprocess()
        return dataclasses.replace(found, size=max(self.image_size)) if self.grid else found

    def described(self) -> dict[str, Any]:
        """The model in the words of our own metadata."""
        fields = recorded.described(self.name, self.config, self.preprocess, self.class_names)
        return fields | {"image_size": self.image_size if self.grid else None}


def _planned(
    source: Source,
    image_size: Grid | None,
    resize_method: str,
    num_classes: int | None,
    drop_pre_logits: bool,
    dtype: str | None,
) -> _Plan:
    if source.config is None:
        raise UserError(f"{str(source.archive.path)!r}: {'; '.join(source.notes)}")
    source.require_heads()
    shapes = {name: spec.shape for name, spec in source.specs().items()}
    plan = _Plan(source, dict(source.config), shapes, grid_of(source, shapes))
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


def _drop_pre_logits(plan: _Plan) -> None:
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


def _replace_head(plan: _Plan, num_classes: int) -> None:
    if num_classes < 0:
        raise UserError(f"a number of classes is 0 or more; got {num_classes}")
    gone = [n for n in plan.shapes if n.startswith("head/")]
    width = plan.config.get("representation_size") or describe.width(plan.config)
    dtype = next(s.dtype for n, s in plan.source.specs().items() if n.endswith("norm/bias"))
    added = {
        "head/kernel": lambda: np.zeros((width, num_classes), dtype),
        "head/bias": lambda: np.zeros(num_classes, dtype),
    }
    plan.dropped += gone
    plan.edit(
        f"head replaced by zeros for {num_classes} classes" if num_classes else "head dropped",
        lambda x: Edited(x, dropped=gone, added=added if num_classes else {}),
    )


def _resize(plan: _Plan, image_size: Grid, method: str) -> None:
    stride = describe.downsampling(plan.config)
    new = image_size[0] // stride, image_size[1] // stride
    if min(new) < 1:
        raise UserError(f"{image_size} pixels hold no patch of {stride}")
    if plan.grid is None and math.prod(new) == describe.num_patches(plan.config, plan.shapes):
        plan.grid = new
    old = plan.grid
    if old is None:
        raise UserError("the file's grid of patches is neither square nor recorded in it")
    if new == old:
        return
    if family_of(plan.config) == "mixer":
        raise UserError("a Mixer cannot be resized: its token mixing is trained for one grid")
    prefix = int(describe.has_class_token(plan.config))
    plan.grid = new
    plan.edit(
        f"position embeddings resized from {old} to {new}, method {method!r}",
        lambda x: Edited(
            x, changed={POSEMB: lambda p: resize_posembed(p, old, new, prefix, method)}
        ),
    )


def _cast(plan: _Plan, dtype: str) -> None:
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")

    def cast(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # what overflows is reported as not finite
            return x.astype(DTYPES[dtype])

    plan.edit(f"cast to {dtype}", lambda x: Edited(x, changed=dict.fromkeys(x, cast)))


def _count_not_finite(x: np.ndarray) -> int:
    with np.errstate(all="ignore"):
        if np.isfinite(x.sum()):  # several times faster, and almost always enough
            return 0
    return x.size - int(np.count_nonzero(np.isfinite(x)))


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
        if bad := _count_not_finite(x):
            self.not_finite[name] = bad
        self._done += x.nbytes
        if self._progress:
            self._progress(self._done, self._all)
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def _official_names(plan: _Plan) -> Callable[[Tensors], Tensors]:
    if plan.config.get("classifier") == "map":
        raise UserError(
            "the official models have no attention-pooling head; use big_vision or timm"
        )
    rows = released.writing(plan.shapes)
    return lambda linen: Exported(rows, linen)


def _big_vision_names(plan: _Plan) -> Callable[[Tensors], Tensors]:
    rows = big_vision.writing(plan.shapes)
    if describe.has_class_token(plan.config):
        _settle_class_position(plan)
    return lambda linen: Exported(rows, linen)


def _settle_class_position(plan: _Plan) -> None:
    """Current big_vision adds no position to the class token."""
    position = plan.linen(plan.source.view)[POSEMB][:, :1]
    if position.any() and plan.grid is not None and plan.grid[0] == plan.grid[1]:
        plan.steps.append(
            "the class token keeps its own position, which big_vision folds into `cls` on loading"
        )
        return
    if position.any():
        step = "the class token's position folded into `cls`"
    else:
        step = "the class token's position, zero, left out"
        position = None  # adding it would turn -0.0 into 0.0

    def fold(cls: np.ndarray) -> np.ndarray:
        return cls if position is None else cls + position

    changed = {POSEMB: lambda p: p[:, 1:], "cls": fold}
    plan.edit(step, lambda x: Edited(x, changed=changed))


def _torch_names(layout: str) -> Callable[["_Plan"], Callable[[Tensors], Tensors]]:
    return lambda plan: lambda linen: exported(linen, plan.config, layout)


def _linen_names(_: _Plan) -> Callable[[Tensors], Tensors]:
    return lambda linen: linen


class _Hashing:
    """The metadata of a conversion, while a thread takes the hash of the source. A context manager.

    Hashing takes as long as converting: what can wait for it writes a draft first.
    """

    def __init__(self, path: pathlib.Path, metadata: Callable[[str], dict[str, str]]):
        self._metadata = metadata
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._sha256 = self._thread.submit(_sha256, path)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._thread.shutdown()

    def sha256(self) -> str:
        return self._sha256.result()

    def draft(self) -> dict[str, str]:
        """As long as the final metadata."""
        return self._metadata("0" * hashlib.sha256().digest_size * 2)

    def final(self) -> dict[str, str]:
        return self._metadata(self.sha256())


def _write_orbax(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, _: _Plan) -> None:
    write_orbax(dst, tensors, hashing.final())


def _write_npz(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, plan: _Plan) -> None:
    metadata = hashing.final()
    fitting = recorded.fitting_npz(metadata)
    if fitting != metadata:
        plan.source.notes.append("the class names are left out: an npz file has no room for them")
    write_npz(dst, tensors, fitting)


def _write_timm(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, plan: _Plan) -> None:
    if dst.suffix in (".pth", ".bin"):
        write_torch(dst, dict(tensors))
        return
    described = timm_description(
        plan.config,
        num_classes=plan.num_classes,
        image_size=plan.image_size,
        preprocess=plan.preprocess,
    )
    fields = {"format": "pt", recorded.TIMM: json.dumps(described)}
    _write_hashed(dst, tensors, hashing, fields)


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
    dtypes = {spec.dtype.name for spec in tensors.specs.values()}
    config = hf_dir.config_json(
        plan.config,
        image_size=plan.image_size,
        num_classes=plan.num_classes,
        class_names=plan.class_names,
        dtype=dtypes.pop() if len(dtypes) == 1 else "float32",
    )
    files = {
        hf_dir.CONFIG: config,
        hf_dir.PREPROCESSOR: hf_dir.preprocessor_json(plan.preprocess, plan.image_size),
    }
    with replacing_directory(dst) as folder:
        for name, fields in files.items():
            (folder / name).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
        _write_hashed(folder / hf_dir.WEIGHTS, tensors, hashing, {"format": "pt"})


# Target -> what it calls the tensors (and whether it can hold them), and what writes them.
_TARGETS = {
    "official": (_official_names, _write_npz),
    "big_vision": (_big_vision_names, _write_npz),
    "orbax": (_linen_names, _write_orbax),
    "timm": (_torch_names("timm"), _write_timm),
    "hf": (_torch_names("hf"), _write_hf),
}


def _record(source: Source, to: str, steps: list[str], sha256: str) -> dict[str, Any]:
    return {
        "tool": f"vit-jax {__version__}",
        "source": {
            "file": source.archive.path.name,
            "sha256": sha256,
            "format": source.format,
            "layout": source.layout,
        },
        "to": to,
        "steps": steps,
    }


def _sha256(path: pathlib.Path) -> str:
    """Of a file's bytes; of a directory, as of the text that `sha256sum` prints of its files."""
    if path.is_dir():
        files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        lines = [f"{_sha256(path / name)}  {name}\n" for name in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

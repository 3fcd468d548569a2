"""Any format to any format, tensor by tensor, with a record of every step.

The pipeline is a function from the file's tensors to the new file's, built of lazy mappings. It
runs twice: on empty tensors, which gives the new file's shapes and finds every error before a
byte is written, and on the real ones.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vit_jax import __version__
from vit_jax.checkpoint import describe, hf_dir, recorded, zoo
from vit_jax.checkpoint.files.archive import Edited, replacing_directory
from vit_jax.checkpoint.files.formats import write_npz, write_orbax, write_safetensors, write_torch
from vit_jax.checkpoint.planning import POSEMB, Plan, planned
from vit_jax.checkpoint.source import Source, Tensors, open_source, specs_of
from vit_jax.checkpoint.tables import big_vision, released
from vit_jax.checkpoint.timm_file import timm_description
from vit_jax.checkpoint.torch_names import exported
from vit_jax.errors import UserError
from vit_jax.families.registry import is_google
from vit_jax.families.resize import Grid
from vit_jax.families.rules import Exported
from vit_jax.variables import is_statistic


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
    if to not in TARGETS:
        raise UserError(f"unknown format {to!r}; known: {', '.join(TARGETS)}")
    with open_source(src, model, image_size) as source:
        plan = planned(source, image_size, resize_method, num_classes, drop_pre_logits, dtype)
        name_tensors, write = _target(to, plan)
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
            num_params=sum(math.prod(s) for n, s in plan.shapes.items() if not is_statistic(n)),
            steps=tuple(plan.steps),
            skipped=tuple(source.skipped),
            dropped=tuple(plan.dropped),
            not_finite=tensors.not_finite,
            notes=tuple(source.notes),
            source_sha256=sha256,
        )


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


def _official_names(plan: Plan) -> Callable[[Tensors], Tensors]:
    if plan.config.get("classifier") == "map":
        raise UserError(
            "the official models have no attention-pooling head; use big_vision or timm"
        )
    if not is_google(plan.config):
        return _linen_names(plan)  # which has one spelling only
    rows = released.writing(plan.shapes)
    return lambda linen: Exported(rows, linen)


def _big_vision_names(plan: Plan) -> Callable[[Tensors], Tensors]:
    rows = big_vision.writing(plan.shapes)
    if describe.has_class_token(plan.config):
        _settle_class_position(plan)
    return lambda linen: Exported(rows, linen)


def _settle_class_position(plan: Plan) -> None:
    """Current big_vision adds no position to the class token."""
    position = plan.linen(plan.source.view)[POSEMB][:, :1]
    if position.any() and plan.size is not None and plan.size[0] == plan.size[1]:
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


def _torch_names(layout: str) -> Callable[["Plan"], Callable[[Tensors], Tensors]]:
    return lambda plan: lambda linen: exported(linen, plan.config, layout)


def _linen_names(_: Plan) -> Callable[[Tensors], Tensors]:
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


def _write_orbax(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, _: Plan) -> None:
    write_orbax(dst, tensors, hashing.final())


def _write_npz(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, plan: Plan) -> None:
    metadata = hashing.final()
    fitting = recorded.fitting_npz(metadata)
    if fitting != metadata:
        plan.source.notes.append("the class names are left out: an npz file has no room for them")
    write_npz(dst, tensors, fitting)


def _write_timm(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, plan: Plan) -> None:
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


def _write_hf(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, plan: Plan) -> None:
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


def _write_state_dict(dst: pathlib.Path, tensors: _Watched, hashing: _Hashing, plan: Plan) -> None:
    """A library's names in a file, without what else that library keeps beside its weights."""
    if dst.suffix in (".pth", ".bin"):
        write_torch(dst, dict(tensors))
    else:
        _write_hashed(dst, tensors, hashing, {"format": "pt"})


# Target -> what it calls the tensors (and whether it can hold them), and what writes them.
_TARGETS = {
    "official": (_official_names, _write_npz),
    "big_vision": (_big_vision_names, _write_npz),
    "orbax": (_linen_names, _write_orbax),
    "timm": (_torch_names("timm"), _write_timm),
    "hf": (_torch_names("hf"), _write_hf),
}
# Layouts of families that timm does not have: a file in the names of the library that has them.
_LIBRARIES = ("torch", "tlt", "vit_pytorch")
TARGETS = (*_TARGETS, *_LIBRARIES)


def _target(to: str, plan: Plan) -> tuple[Any, Any]:
    """The row of a target; UserError where the model's family does not go there."""
    if is_google(plan.config):
        if to in _LIBRARIES:
            raise UserError(f"{plan.name} has no layout {to!r}; use timm, hf or official")
        return _TARGETS[to]
    layouts = zoo.names_of(plan.config).layouts
    if to not in ("official", "orbax", *layouts):
        raise UserError(f"{plan.name} has no layout {to!r}; it has {', '.join(layouts)}, official")
    if to in ("hf", *_LIBRARIES):
        return _torch_names(to), _write_state_dict
    return (_torch_names(to), _write_npz) if to == "big_vision" else _TARGETS[to]


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

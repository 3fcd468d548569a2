"""The formats that a checkpoint is converted to: what writes each, and what is noted of it."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vit_jax import stores
from vit_jax.checkpoint import beside, hf_dir, names, recorded
from vit_jax.checkpoint.files.archive import replacing_directory
from vit_jax.checkpoint.files.formats import (
    write_npz,
    write_orbax,
    write_safetensors,
    write_torch,
)
from vit_jax.checkpoint.names import LINEN, OFFICIAL, Tensors
from vit_jax.checkpoint.source import Source, count_not_finite, specs_of
from vit_jax.errors import UserError
from vit_jax.families.family import HuggingFace
from vit_jax.families.registry import families, get

if TYPE_CHECKING:
    from vit_jax.checkpoint.conversion import Plan


class Watched(Mapping[str, np.ndarray]):
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


class Hashing:
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


def _write_orbax(dst: pathlib.Path, tensors: Watched, hashing: Hashing, _: "Plan") -> None:
    write_orbax(dst, tensors, hashing.final())


def _write_npz(dst: pathlib.Path, tensors: Watched, hashing: Hashing, _: "Plan") -> None:
    write_npz(
        dst,
        tensors,
        recorded.fitting_npz(hashing.draft()),
        late=lambda: recorded.fitting_npz(hashing.final()),
    )


def _npz_notes(plan: "Plan", _: pathlib.Path) -> list[str]:
    metadata = {recorded.OURS: json.dumps(plan.model.metadata())}
    if recorded.fitting_npz(metadata) == metadata:
        return []
    return ["the class names are left out: an npz file has no room for them"]


def _write_timm(dst: pathlib.Path, tensors: Watched, hashing: Hashing, plan: "Plan") -> None:
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


def _timm_notes(plan: "Plan", dst: pathlib.Path) -> list[str]:
    if dst.suffix in _PICKLED:
        return _state_dict_notes(plan, dst)
    return beside.preprocessing_differences(plan.model.preprocess)


def _state_dict_notes(_: "Plan", dst: pathlib.Path) -> list[str]:
    if dst.suffix not in _PICKLED:
        return []
    return [
        f"a {dst.suffix} file holds tensors only: neither the model, nor its preprocessing, nor "
        "what was done here is recorded in it"
    ]


def _write_hashed(
    path: pathlib.Path, tensors: Watched, hashing: Hashing, fields: dict[str, str]
) -> None:
    write_safetensors(
        path,
        tensors,
        {**fields, **hashing.draft()},
        tensors.specs,
        late=lambda: {**fields, **hashing.final()},
    )


def _write_hf(dst: pathlib.Path, tensors: Watched, hashing: Hashing, plan: "Plan") -> None:
    """A whole directory takes the place of `dst`, which must be one of ours or absent."""
    there = stores.path(dst)
    if there.exists() and not (there / hf_dir.CONFIG).exists():
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
    files = {hf_dir.CONFIG: config}
    if "images" in get(plan.config).inputs:
        processor = hf_dir.preprocessor_json(model.preprocess, plan.image_size)
        files[hf_dir.PREPROCESSOR] = processor
    with replacing_directory(dst) as folder:
        for name, fields in files.items():
            (folder / name).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
        _write_hashed(folder / hf_dir.WEIGHTS, tensors, hashing, {"format": "pt"})


def _hf_notes(plan: "Plan", _: pathlib.Path) -> list[str]:
    if "images" not in get(plan.config).inputs:
        return []
    return hf_dir.preprocessing_differences(plan.model.preprocess, plan.image_size)


def _write_state_dict(dst: pathlib.Path, tensors: Watched, hashing: Hashing, plan: "Plan") -> None:
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
    write: Callable[[pathlib.Path, Watched, Hashing, "Plan"], None]
    layout: str | None = None
    notes: Callable[["Plan", pathlib.Path], list[str]] = lambda plan, dst: []


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

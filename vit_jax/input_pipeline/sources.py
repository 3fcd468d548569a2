"""Where examples come from: TensorFlow Datasets by name, or a folder of images.

All sources, those of `csv_source.py` and `imagenet_tar.py` too, are random-access sequences of
`{'image': encoded bytes, 'label': int, 'name': str}` that pickle, so that worker processes can
open them again; `open_source` finds the right one. No TensorFlow: TFDS data is read as
ArrayRecord.
"""

import contextlib
import functools
import glob
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from vit_jax.errors import UserError, suggest

PathLike = str | os.PathLike[str]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_RESOLVE_SECONDS = 5.0


class Record(TypedDict):
    """One example as stored; `image` is an array only under `tfds.testing.mock_data`."""

    image: bytes | np.ndarray
    label: int | list[int]  # A list where images may have several.
    name: str  # For error messages: a path, or 'dataset[split] example 3'.


class Source(Protocol):
    """A random-access sequence of records that knows its classes."""

    num_classes: int
    int2str: Callable[[int], str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


def read_image(path: str) -> bytes:
    """A file's bytes; UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error


# --- finding the right one -----------------------------------------------------------------------

# Where the test split lies, for want of one of the given name.
_TEST_SPLITS = ("test", "val", "validation")


def open_source(
    dataset: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    manual_dir: PathLike | None = None,
) -> Source:
    """One split of whatever `dataset` names.

    Args:
      dataset: A folder `{train,test}/<class>/<image>` (`val` or `validation` will do for `test`);
        a folder of ImageNet's tar files, see `imagenet_tar.py`; a CSV file to train on, with
        `test.csv` (or `val.csv`, `validation.csv`) beside it, see `csv_source.py`; or else a TFDS
        name.
      split: For TFDS any split, e.g. 'train[:98%]'. For the others 'train', 'test' or the name
        of a folder or file; slices are of TFDS only, and are left away with a warning.
      data_dir, manual_dir: As in `TfdsSource`.

    Raises:
      UserError: as the sources do.
    """
    is_csv = dataset.lower().endswith(".csv")
    if not is_csv and not os.path.isdir(dataset):
        return TfdsSource(dataset, split, data_dir, manual_dir)
    split = _without_slice(split, dataset)
    if is_csv:
        return _open_csv(dataset, split)

    from vit_jax.input_pipeline import imagenet_tar

    if imagenet_tar.is_imagenet(dataset):
        return imagenet_tar.ImagenetTarSource(dataset, split)
    return FolderSource(split_path(dataset, split))


def split_path(directory: PathLike, split: str, suffix: str = "") -> str:
    """`<directory>/<split><suffix>`, or the first that exists of the test split's other names."""
    names = (split, *_TEST_SPLITS) if split in _TEST_SPLITS else (split,)
    paths = [os.path.join(directory, name + suffix) for name in names]
    return next((path for path in paths if os.path.exists(path)), paths[0])


def _open_csv(file: str, split: str) -> Source:
    from vit_jax.input_pipeline.csv_source import CsvSource

    if split == "train":
        return CsvSource(file)
    return CsvSource(split_path(os.path.dirname(file), split, ".csv"), train=file)


def _without_slice(split: str, dataset: str) -> str:
    name, bracket, _ = split.partition("[")
    if bracket:
        from absl import logging

        logging.warning("%s: all of %r is read, slices are of TFDS only (%r)", dataset, name, split)
    return name


# --- TensorFlow Datasets -------------------------------------------------------------------------


class TfdsSource:
    """One split of a TFDS dataset.

    Args:
      dataset: TFDS name, e.g. 'cifar10', 'digits' (ours) or 'imagenet2012:5.1.0'.
      split: TFDS split, e.g. 'train[:98%]'.
      data_dir: Where datasets lie; None is TFDS's default, `~/tensorflow_datasets`.
      manual_dir: Where files lie that TFDS cannot download itself (ImageNet's archives).

    Raises:
      UserError: for an unknown dataset or split, one that cannot be prepared here, one stored
        in a format without random access, or one without an image and a label.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        data_dir: PathLike | None = None,
        manual_dir: PathLike | None = None,
    ):
        builder = _prepared_builder(dataset, data_dir, manual_dir)
        label = _label_feature(builder, dataset)
        self.num_classes: int = label.num_classes
        self.int2str: Callable[[int], str] = label.int2str
        self._name = f"{dataset}[{split}]"
        self._records = _data_source(builder, dataset, split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        return {
            "image": record["image"],
            "label": int(record["label"]),
            "name": f"{self._name} example {index}",
        }


def prepare(
    dataset: str, data_dir: PathLike | None = None, manual_dir: PathLike | None = None
) -> tuple[str, dict[str, int]]:
    """Downloads a TFDS dataset and writes it as ArrayRecord, unless that was done before.

    Returns:
      Where it lies, and the number of examples of every split.

    Raises:
      UserError: for an unknown dataset, or one that cannot be prepared here.
    """
    builder = _prepared_builder(dataset, data_dir, manual_dir)
    splits = {name: info.num_examples for name, info in builder.info.splits.items()}
    return str(builder.data_path), splits


def _prepared_builder(dataset: str, data_dir: PathLike | None, manual_dir: PathLike | None) -> Any:
    """A builder whose data is on disk, prepared first where that is possible."""
    builder = _builder(dataset, data_dir)
    if builder.is_prepared():
        return builder
    if builder.data_path.exists() and not _is_mocked(builder):
        raise UserError(
            f"the dataset {dataset!r} in {builder.data_path} is incomplete (no dataset_info.json); "
            "delete that directory and try again"
        )
    try:
        _prepare(builder, dataset, manual_dir)
    except Exception as error:
        # Another process may have finished the same dataset first; TFDS prepares in a temporary
        # directory and renames it, so what is there now is whole.
        builder = _builder(dataset, data_dir)
        if builder.is_prepared():
            return builder
        if isinstance(error, UserError):
            raise
        raise _not_prepared(builder, dataset, _first_line(error)) from error
    return builder


def _builder(dataset: str, data_dir: PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    import vit_jax.input_pipeline.digits  # noqa: F401  (registers the name 'digits')

    data_dir = None if data_dir is None else os.path.expanduser(data_dir)
    try:
        return tfds.builder(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(
            f"unknown dataset {dataset!r}: neither an existing directory nor a TensorFlow Datasets "
            f"name.{suggest(dataset, known)}"
        ) from error
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"{dataset!r} is neither an existing directory nor a dataset that TensorFlow Datasets "
            f"can build: {_first_line(error)}"
        ) from error


def _prepare(builder: Any, dataset: str, manual_dir: PathLike | None) -> None:
    """Downloads and writes ArrayRecord; gives up at once where the download has no chance."""
    import tensorflow_datasets as tfds

    urls = [] if _is_mocked(builder) else list(builder.url_infos or ())
    if dead := _unresolvable_host(urls):
        raise _not_prepared(builder, dataset, f"its host {dead} cannot be reached from here")
    # TFDS reports on standard output, which belongs to the command that runs.
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
        )


def _unresolvable_host(urls: Sequence[str]) -> str | None:
    """The first URL's host if its name does not resolve.

    TFDS retries a failing download for minutes; this answers within seconds.
    """
    import socket
    import threading
    import urllib.parse
    import urllib.request

    if not urls or urllib.request.getproxies():  # A proxy resolves names itself.
        return None
    host = urllib.parse.urlsplit(urls[0]).hostname
    found = []

    def resolve() -> None:
        with contextlib.suppress(OSError):
            found.append(socket.getaddrinfo(host, 443))

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(_RESOLVE_SECONDS)
    return None if found else host


def _not_prepared(builder: Any, dataset: str, why: str) -> UserError:
    return UserError(
        f"the dataset {dataset!r} is not prepared in {builder.data_path}, and preparing it failed: "
        f"{why}. Prepare it once where TensorFlow and a network are at hand: "
        f"{_build_command(builder, dataset)}"
    )


def _build_command(builder: Any, dataset: str) -> str:
    root = shlex.quote(str(builder.data_dir_root))
    return f"tfds build {shlex.quote(dataset)} --file_format=array_record --data_dir={root}"


def _label_feature(builder: Any, dataset: str) -> Any:
    import tensorflow_datasets as tfds

    features = builder.info.features
    names = sorted(features) if isinstance(features, tfds.features.FeaturesDict) else [features]
    if "image" not in names or not isinstance(features["label"], tfds.features.ClassLabel):
        raise UserError(
            f"the dataset {dataset!r} is no image classification dataset: expected the features "
            f"'image' and 'label' (a ClassLabel), found {names}"
        )
    return features["label"]


def _data_source(builder: Any, dataset: str, split: str) -> Sequence[Any]:
    import tensorflow_datasets as tfds

    # Mocked data is random pixels; encoding them to then skip the decoding would take TensorFlow.
    decoders = None if _is_mocked(builder) else {"image": tfds.decode.SkipDecoding()}
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise UserError(
            f"the dataset {dataset!r} in {builder.data_path} is stored as "
            f"{builder.info.file_format.value}, which has no random access; expected array_record. "
            "Convert it where TensorFlow is installed: tfds convert_format --dataset_version_dir="
            f"{shlex.quote(str(builder.data_path))} --out_file_format=array_record"
        ) from error
    except (ValueError, KeyError) as error:
        raise _unknown_split(builder, dataset, split) from error


def _unknown_split(builder: Any, dataset: str, split: str) -> UserError:
    known = {name: info.num_examples for name, info in builder.info.splits.items()}
    return UserError(
        f"the dataset {dataset!r} has no split {split!r}; its splits and examples: {known} "
        "(slices like 'train[:98%]' work)"
    )


def _is_mocked(builder: Any) -> bool:
    """Whether `tfds.testing.mock_data` is in force: preparing does nothing, data is random."""
    return type(builder).as_data_source.__module__.startswith("tensorflow_datasets.testing")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- image folders -------------------------------------------------------------------------------


class FolderSource:
    """Images in `<directory>/<class>/<file>`, e.g. JPEG, PNG or WebP, whatever the case.

    Classes are the sorted subfolder names of the sibling folder `train` where there is one, so
    that `test` gets the same numbers; else of `directory` itself. Files are in name order.

    Raises:
      UserError: if the directory is missing or holds no image, or has a class that `train` lacks.
    """

    def __init__(self, directory: PathLike):
        self._directory = Path(directory)
        files = _images_by_class(self._directory)
        self._class_names = _class_names(self._directory, files)
        self.num_classes = len(self._class_names)
        self._paths = [path for name in self._class_names for path in files.get(name, ())]
        self._labels = [
            label for label, name in enumerate(self._class_names) for _ in files.get(name, ())
        ]

    def int2str(self, label: int) -> str:
        """The class's folder name."""
        return self._class_names[label]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        path = self._paths[index]
        return {"image": read_image(path), "label": self._labels[index], "name": path}


@functools.lru_cache(maxsize=8)
def _listing(directory: str, modified: int) -> dict[str, list[str]]:
    del modified  # Part of the key only: a folder that gained a class is listed again.
    return {
        entry.name: sorted(
            file.path
            for file in os.scandir(entry.path)
            if os.path.splitext(file.name)[1].lower() in IMAGE_SUFFIXES
        )
        for entry in os.scandir(directory)
        if entry.is_dir() and not entry.name.startswith(".")
    }


def _images_by_class(directory: Path) -> dict[str, list[str]]:
    try:
        files = _listing(str(directory), directory.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"cannot read the image folder {directory}: {error.strerror}; expected "
            "{train,test}/<class>/<image>"
        ) from error
    if not any(files.values()):
        raise UserError(
            f"no images in {directory}: expected {directory}/<class>/<image> with the suffixes "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return files


def _class_names(directory: Path, files: dict[str, list[str]]) -> list[str]:
    """Sorted class names, from the sibling `train` where there is one."""
    train = directory.absolute().parent / "train"
    known = _images_by_class(train) if train.is_dir() else files
    names = sorted(name for name, paths in known.items() if paths)
    if strangers := sorted(name for name, paths in files.items() if paths and name not in names):
        raise UserError(
            f"{directory} has classes that {train} lacks: {strangers}; "
            f"classes to train on: {names[:10]}{'…' if len(names) > 10 else ''}"
        )
    return names


# --- information ---------------------------------------------------------------------------------


def get_dataset_info(
    dataset: str, split: str, *, data_dir: PathLike | None = None
) -> dict[str, Any]:
    """Facts about one split.

    Args:
      dataset, split, data_dir: As in `open_source`.

    Returns:
      `num_classes`, `num_examples`, `int2str` (label to class name) and `examples_glob` (a pattern
      that matches the split's files; None where they are not files of a folder).

    Raises:
      UserError: as `open_source`.
    """
    source = open_source(dataset, split, data_dir=data_dir)
    if isinstance(source, FolderSource):
        return get_directory_info(split_path(dataset, split.partition("[")[0]))
    return _info(source, examples_glob=None)


def get_tfds_info(dataset: str, split: str, *, data_dir: PathLike | None = None) -> dict[str, Any]:
    """`get_dataset_info` of a TFDS dataset, which is prepared first if it was not."""
    return _info(TfdsSource(dataset, split, data_dir), examples_glob=None)


def get_directory_info(directory: PathLike) -> dict[str, Any]:
    """`get_dataset_info` of one split's folder, `<directory>/<class>/<image>`."""
    pattern = os.path.join(glob.escape(os.fspath(directory)), "*", "*")
    return _info(FolderSource(directory), examples_glob=pattern)


def _info(source: Source, examples_glob: str | None) -> dict[str, Any]:
    return {
        "num_examples": len(source),
        "num_classes": source.num_classes,
        "int2str": source.int2str,
        "examples_glob": examples_glob,
    }

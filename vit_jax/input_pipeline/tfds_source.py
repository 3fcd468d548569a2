"""Examples of TensorFlow Datasets, read as ArrayRecord and therefore without TensorFlow."""

import contextlib
import io
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.errors import UserError, suggest
from vit_jax.input_pipeline.records import TEST_SPLITS, PathLike, Record
from vit_jax.waiting import waiting

_RESOLVE_SECONDS = 5.0


class TfdsSource:
    """One split of a TFDS dataset.

    Args:
      dataset: TFDS name, e.g. 'cifar10', 'digits' (which this package adds) or
        'imagenet2012:5.1.0'; or the folder of a prepared dataset, as `vit-jax prepare` writes it.
      split: TFDS split, e.g. 'train[:98%]'. A test split of a folder may have another of the names
        `TEST_SPLITS` there.
      data_dir: Folder of the prepared datasets; None is TFDS's default, `~/tensorflow_datasets`.
      manual_dir: Folder of the files that TFDS cannot download itself, such as ImageNet's archives.

    Raises:
      UserError: if the dataset or split is unknown, if the dataset cannot be prepared on this
        machine, if it is stored in a format without random access, or if it has no image and label.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        data_dir: PathLike | None = None,
        manual_dir: PathLike | None = None,
    ):
        self._examples = Examples(dataset, split, data_dir, manual_dir, check=label_feature)
        label = label_feature(self._examples.features, dataset)
        self.num_classes: int = label.num_classes
        self.int2str: Callable[[int], str] = label.int2str
        self.description = self._examples.description

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        return record_of(*self._examples[index])


class Examples:
    """The examples of one split of a TFDS dataset, with the encoded bytes of their images.

    Args:
      dataset, split, data_dir, manual_dir: As of `TfdsSource`.
      check: Called with the features and the name of the dataset, before anything is read.

    Attributes:
      features: What an example holds, as TFDS describes it.
      description: What is read: 'dataset[split]'.

    Raises:
      UserError: as `TfdsSource`, and as `check`.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        data_dir: PathLike | None = None,
        manual_dir: PathLike | None = None,
        *,
        check: Callable[[Any, str], object],
    ):
        prepared = is_prepared_folder(dataset)
        builder = (
            _builder_of_folder(dataset)
            if prepared
            else _prepared_builder(dataset, data_dir, manual_dir)
        )
        self.features = builder.info.features
        check(self.features, dataset)
        if prepared:
            split = _split_of_folder(builder, split)
        self.description = f"{dataset}[{split}]"
        self._records = _data_source(builder, dataset, split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Mapping[str, Any], str]:
        """The decoded example, and its name for messages."""
        example = self._records[index]
        return example, named(example, f"{self.description} example {index}")


def named(example: Mapping[str, Any], name: str) -> str:
    """`name`, and the name of the example's file if it has one."""
    # ImageNet's examples, among others, have the first name, COCO's the second.
    file = example.get("file_name", example.get("image/filename"))
    if file is None:
        return name
    return f"{name} ({file.decode() if isinstance(file, bytes) else file})"


def record_of(example: Mapping[str, Any], name: str) -> Record:
    """The record of a decoded example."""
    label = np.asarray(example["label"], int).tolist()  # a list where images have several labels
    return {"image": example["image"], "label": label, "name": name}


def is_prepared_folder(dataset: str) -> bool:
    """Whether a dataset is a folder in which TFDS, or `vit-jax prepare`, has prepared it."""
    return stores.is_file(os.path.join(dataset, "features.json"))


def _split_of_folder(builder: Any, split: str) -> str:
    """The split, or the same part of the test split of another name that the folder has."""
    name, bracket, part = split.partition("[")
    if name not in builder.info.splits and name in TEST_SPLITS:
        name = next((other for other in TEST_SPLITS if other in builder.info.splits), name)
    return f"{name}{bracket}{part}"


def prepare(
    dataset: str, data_dir: PathLike | None = None, manual_dir: PathLike | None = None
) -> tuple[str, dict[str, int]]:
    """Downloads a TFDS dataset and writes it as ArrayRecord, unless that was done before.

    Returns:
      The folder of the prepared dataset, and the number of examples of every split.

    Raises:
      UserError: if the dataset is unknown, or cannot be prepared on this machine.
    """
    builder = _prepared_builder(dataset, data_dir, manual_dir)
    splits = {name: info.num_examples for name, info in builder.info.splits.items()}
    return str(builder.data_path), splits


def _prepared_builder(dataset: str, data_dir: PathLike | None, manual_dir: PathLike | None) -> Any:
    """A builder whose data is on disk; the data is prepared first unless it is there already."""
    builder = _builder(dataset, data_dir)
    if _is_prepared(builder):
        return builder
    if builder.data_path.exists() and not _is_mocked(builder):
        raise UserError(
            f"the dataset {dataset!r} in {builder.data_path} is incomplete (no dataset_info.json); "
            "delete that directory and try again"
        )
    try:
        _prepare(builder, dataset, manual_dir)
    except Exception as error:
        # Another process may have finished the same dataset first. TFDS prepares a dataset in a
        # temporary directory and renames it, so a dataset that is there now is complete.
        builder = _builder(dataset, data_dir)
        if _is_prepared(builder):
            return builder
        if isinstance(error, UserError):
            raise
        raise _not_prepared(builder, dataset, _first_line(error)) from error
    return builder


def _is_prepared(builder: Any) -> bool:
    # `is_prepared` alone would log a warning about an empty folder even if no folder exists.
    return builder.data_path.exists() and builder.is_prepared()


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
    # Some builders, that of COCO's captions among them, import TensorFlow.
    except (ValueError, AssertionError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{dataset!r} is neither an existing directory nor a dataset that TensorFlow Datasets "
            f"can build: {_first_line(error)}"
        ) from error


def _builder_of_folder(folder: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # A description that is damaged raises a dozen types.
        raise UserError(
            f"{folder} is no prepared dataset that TensorFlow Datasets can read: "
            f"{_first_line(error)}"
        ) from error


def _prepare(builder: Any, dataset: str, manual_dir: PathLike | None) -> None:
    """Downloads the dataset and writes it as ArrayRecord.

    The function gives up within seconds if the name of the download's host does not resolve.
    """
    import tensorflow_datasets as tfds

    urls = [] if _is_mocked(builder) else list(builder.url_infos or ())
    if dead := _unresolvable_host(urls):
        raise _not_prepared(builder, dataset, f"its host {dead} cannot be reached from here")
    tfds.disable_progress_bar()
    # TFDS prints sizes that it does not know, and on standard output, which is the command's.
    silent = contextlib.redirect_stdout(io.StringIO())
    with waiting(_preparing(builder, dataset), _written(builder)), silent:
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
        )


def _preparing(builder: Any, dataset: str) -> str:
    size = builder.info.download_size
    download = f", {size} to download" if size else ""
    return f"preparing the dataset {dataset!r} (once{download})"


def _written(builder: Any) -> list[str]:
    """The folders in which TFDS writes while it downloads and prepares."""
    root = str(builder.data_dir_root)
    return [os.path.join(root, name) for name in ("downloads", builder.name)]


def _unresolvable_host(urls: Sequence[str]) -> str | None:
    """The host of the first URL if its name does not resolve, else None.

    TFDS retries a download that fails for minutes, whereas this check takes seconds at most.
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


def label_feature(features: Any, dataset: str) -> Any:
    """The `ClassLabel` of a dataset's features; where images have several labels, of each of them.

    Raises:
      UserError: if the dataset is not one of images with labels.
    """
    import tensorflow_datasets as tfds

    names = sorted(features) if isinstance(features, tfds.features.FeaturesDict) else [features]
    label = features["label"] if {"image", "label"} <= set(map(str, names)) else None
    if isinstance(label, tfds.features.Sequence):
        label = label.feature
    if not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"the dataset {dataset!r} is no image classification dataset: expected the features "
            f"'image' and 'label' (a ClassLabel), found {names}"
        )
    return label


def _data_source(builder: Any, dataset: str, split: str) -> Sequence[Any]:
    import tensorflow_datasets as tfds

    # Mocked data are random pixels. TFDS would need TensorFlow to encode them, so they are taken as
    # they are, and decoding is skipped for real data only.
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
    """Whether `tfds.testing.mock_data` is in force, under which the data is random."""
    return type(builder).as_data_source.__module__.startswith("tensorflow_datasets.testing")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

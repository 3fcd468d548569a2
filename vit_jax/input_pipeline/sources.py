"""Opens a source of examples: a TFDS dataset, an image folder, a CSV file or ImageNet's tar files.

All sources are random-access sequences of `{'image': encoded bytes, 'label': int, 'name': str}`;
the label of a CSV source with several labels is a list. All sources can be pickled, so that worker
processes can open them again. `open_source` chooses the source by the name of the dataset.
"""

import glob
import os
from typing import Any

from vit_jax.input_pipeline import imagenet_tar
from vit_jax.input_pipeline.csv_source import CsvSource
from vit_jax.input_pipeline.folder_source import FolderSource
from vit_jax.input_pipeline.records import PathLike, Record, Source
from vit_jax.input_pipeline.tfds_source import TfdsSource, prepare

__all__ = [
    "FolderSource",
    "Record",
    "Source",
    "TfdsSource",
    "get_dataset_info",
    "get_directory_info",
    "get_tfds_info",
    "open_source",
    "prepare",
    "split_path",
]

# Names of the test split. If the given name does not exist, the others are tried in this order.
_TEST_SPLITS = ("test", "val", "validation")


def open_source(
    dataset: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    manual_dir: PathLike | None = None,
) -> Source:
    """Opens one split of the dataset that `dataset` names.

    Args:
      dataset: A folder `{train,test}/<class>/<image>` (`val` or `validation` will do for `test`);
        a folder of ImageNet's tar files, see `imagenet_tar.py`; a CSV file to train on, with
        `test.csv` (or `val.csv`, `validation.csv`) beside it, see `csv_source.py`; or else a TFDS
        name.
      split: Any split of TFDS, e.g. 'train[:98%]'; for other datasets 'train', 'test' or the name
        of a folder or file. Only TFDS reads slices; for other datasets a slice is ignored, with a
        warning.
      data_dir, manual_dir: As in `TfdsSource`.

    Raises:
      UserError: if the source cannot be opened; the classes of the sources say when.
    """
    is_csv = dataset.lower().endswith(".csv")
    if not is_csv and not os.path.isdir(dataset):
        return TfdsSource(dataset, split, data_dir, manual_dir)
    split = _without_slice(split, dataset)
    if is_csv:
        return _open_csv(dataset, split)

    if imagenet_tar.is_imagenet(dataset):
        return imagenet_tar.ImagenetTarSource(dataset, split)
    return FolderSource(split_path(dataset, split))


def split_path(directory: PathLike, split: str, suffix: str = "") -> str:
    """The path `<directory>/<split><suffix>`.

    If it does not exist and `split` is a name of the test split, the first path that exists under
    another name of the test split is returned.
    """
    names = (split, *_TEST_SPLITS) if split in _TEST_SPLITS else (split,)
    paths = [os.path.join(directory, name + suffix) for name in names]
    return next((path for path in paths if os.path.exists(path)), paths[0])


def _open_csv(file: str, split: str) -> Source:
    if split == "train":
        return CsvSource(file)
    return CsvSource(split_path(os.path.dirname(file), split, ".csv"), train=file)


def _without_slice(split: str, dataset: str) -> str:
    name, bracket, _ = split.partition("[")
    if bracket:
        from absl import logging

        logging.warning("%s: all of %r is read, slices are of TFDS only (%r)", dataset, name, split)
    return name


# --- information ---------------------------------------------------------------------------------


def get_dataset_info(
    dataset: str, split: str, *, data_dir: PathLike | None = None
) -> dict[str, Any]:
    """Facts about one split.

    Args:
      dataset, split, data_dir: As in `open_source`.

    Returns:
      `num_classes`, `num_examples`, `int2str` (label to class name) and `examples_glob` (a pattern
      that matches the split's files; None unless the split is a folder of images).

    Raises:
      UserError: if the source cannot be opened.
    """
    source = open_source(dataset, split, data_dir=data_dir)
    if isinstance(source, FolderSource):
        return get_directory_info(split_path(dataset, split.partition("[")[0]))
    return _info(source, examples_glob=None)


def get_tfds_info(dataset: str, split: str, *, data_dir: PathLike | None = None) -> dict[str, Any]:
    """`get_dataset_info` of a TFDS dataset, which is prepared first unless that was done before.

    Raises:
      UserError: if the dataset or split is unknown or cannot be prepared.
    """
    return _info(TfdsSource(dataset, split, data_dir), examples_glob=None)


def get_directory_info(directory: PathLike) -> dict[str, Any]:
    """`get_dataset_info` of the folder of one split, `<directory>/<class>/<image>`.

    Raises:
      UserError: if the folder cannot be read or holds no images.
    """
    pattern = os.path.join(glob.escape(os.fspath(directory)), "*", "*")
    return _info(FolderSource(directory), examples_glob=pattern)


def _info(source: Source, examples_glob: str | None) -> dict[str, Any]:
    return {
        "num_examples": len(source),
        "num_classes": source.num_classes,
        "int2str": source.int2str,
        "examples_glob": examples_glob,
    }

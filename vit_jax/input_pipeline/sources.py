"""Opens a source of examples: TFDS, ArrayRecord, a folder, a table, arrays, ImageNet's tar files.

All sources are random-access sequences of `{'image': encoded bytes or pixels, 'label': int, 'name':
str}`; the label is a list where images may have several labels. All sources can be pickled, so that
worker processes can open them again. `open_source` chooses the source by the name of the dataset.
"""

import glob
import os
from typing import Any

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.input_pipeline import array_source, copies, image_files, imagenet_tar, tables
from vit_jax.input_pipeline.array_record_source import ArrayRecordSource, is_array_record
from vit_jax.input_pipeline.array_source import ArraySource
from vit_jax.input_pipeline.folder_source import FolderSource, are_splits, is_split
from vit_jax.input_pipeline.held_out import held_out
from vit_jax.input_pipeline.preparing import inputs as preparing
from vit_jax.input_pipeline.preparing.hugging_face import is_on_disk
from vit_jax.input_pipeline.records import (
    TEST_SPLITS,
    LabelledSource,
    PathLike,
    Record,
    Source,
)
from vit_jax.input_pipeline.table_source import TableSource
from vit_jax.input_pipeline.tfds_source import TfdsSource, is_prepared_folder, prepare

__all__ = [
    "FILE_SUFFIXES",
    "ArraySource",
    "FolderSource",
    "Record",
    "Source",
    "TableSource",
    "TfdsSource",
    "get_dataset_info",
    "get_directory_info",
    "get_tfds_info",
    "open_file",
    "open_source",
    "prepare",
    "split_path",
]

FILE_SUFFIXES = (*tables.SUFFIXES, ".npz")


def open_source(
    dataset: str,
    split: str | None = None,
    *,
    data_dir: PathLike | None = None,
    manual_dir: PathLike | None = None,
    labelled: bool = True,
) -> Source:
    """Opens one split of the dataset that `dataset` names.

    Where training images have no test split beside them, a tenth of each class is held out of
    'train', and is the test split; see `held_out.py`.

    Args:
      dataset: A path, or the address of the same in a store (`gs://…`, `s3://…`), of a folder
        `{train,test}/<class>/` of images (`val`, `valid` or `validation` will do
        for `test`), or a folder `<class>/` of them; a folder of ImageNet's tar files, see
        `imagenet_tar.py`; a table of paths, see `table_source.py`, or of pixels, see
        `array_source.py`, or an `.npz` of arrays, each with the test split in a file `test`, `val`,
        … of the same suffix beside it, or in other arrays of the same file; the folder of a
        dataset that TFDS or `vit-jax prepare` has prepared; a pattern of such files of ArrayRecord,
        see `array_record_source.py`; or else a TFDS name.
      split: Any split of TFDS, e.g. 'train[:98%]'; for other datasets 'train', 'test' or the name
        of a folder or file. Only TFDS and prepared folders read slices; for other datasets a slice
        is ignored, with a warning. None reads all of a file or of a folder of classes, and is
        'test' for other datasets.
      data_dir, manual_dir: As in `TfdsSource`.
      labelled: Whether images without labels are an error. Otherwise a file of them is read, and
        the label of each record is the empty list.

    Raises:
      UserError: if the source cannot be opened; the classes of the sources say when.
    """
    if is_array_record(dataset):
        return ArrayRecordSource(dataset, split and without_slice(split, dataset))
    if is_prepared_folder(dataset):
        return TfdsSource(copies.of_folder(dataset), split or "test")
    _require_random_access(dataset)
    if dataset.lower().endswith(FILE_SUFFIXES) or stores.is_file(dataset):
        source = _open_split_of_file(dataset, split and without_slice(split, dataset), labelled)
        if labelled and not source.num_classes:
            raise UserError(f"{source.description} has no labels; {tables.expected()}")
        return source
    if not stores.is_dir(dataset):
        if stores.is_address(dataset):
            raise UserError(f"there is no folder and no file {dataset}")
        return TfdsSource(dataset, split or "test", data_dir, manual_dir)
    if imagenet_tar.is_imagenet(dataset):
        if stores.is_address(dataset):
            raise UserError(
                f"{dataset}: ImageNet's tar files are read on a disk only, not in a store"
            )
        return imagenet_tar.ImagenetTarSource(dataset, without_slice(split or "test", dataset))
    if split is None and _holds_classes(dataset):
        return FolderSource(dataset, train=dataset)
    return _open_split_of_folder(dataset, without_slice(split or "test", dataset))


def _require_random_access(dataset: str) -> None:
    """Raises UserError for files that can only be read in a row, and says how that is mended."""
    if stores.is_address(dataset):  # `prepare` reads from a disk.
        return
    if os.path.isdir(dataset):  # An archive may lie beside the folders of classes.
        folders = set(image_files.subfolders(dataset)) - {"data"}
        raw = is_on_disk(dataset) or (not folders and preparing.is_input(dataset))
    else:
        raw = preparing.is_input(dataset) and not dataset.lower().endswith(FILE_SUFFIXES)
    if raw:
        raise UserError(
            f"{dataset} can only be read in a row: `vit-jax prepare {dataset} --to FOLDER` makes a "
            "dataset of it that is read at random, --config.dataset=FOLDER"
        )


def split_path(directory: PathLike, split: str, suffix: str = "") -> str:
    """The path `<directory>/<split><suffix>`.

    If it does not exist and `split` is a name of the test split, the first path that exists under
    another name of the test split is returned.
    """
    names = (split, *TEST_SPLITS) if split in TEST_SPLITS else (split,)
    paths = [os.path.join(directory, name + suffix) for name in names]
    return next((path for path in paths if stores.exists(path)), paths[0])


def without_slice(split: str, dataset: str) -> str:
    """The name of the split, after a warning if a slice of it is asked for."""
    name, bracket, _ = split.partition("[")
    if bracket:
        image_files.warn_once(
            f"{dataset}: all of {name!r} is read, slices are of TFDS only ({split!r})"
        )
    return name


# --- folders -------------------------------------------------------------------------------------


def _open_split_of_folder(directory: str, split: str) -> Source:
    if split in ("train", *TEST_SPLITS):
        if _holds_classes(directory):
            return _held_out(FolderSource(directory, train=directory), split)
        train, test = os.path.join(directory, "train"), split_path(directory, "test")
        if stores.is_dir(train) and (not stores.is_dir(test) or _is_unlabelled(test)):
            return _held_out(FolderSource(train), split, test)
    return FolderSource(split_path(directory, split))


def holds_only_classes(directory: str) -> bool:
    """Whether the subfolders of a folder are classes, and no image lies beside them."""
    return _holds_classes(directory) and not image_files.images_in(directory, image_files.LeftOut())


def _holds_classes(directory: str) -> bool:
    """Whether the subfolders of a folder are classes and not splits."""
    folders = image_files.subfolders(directory)
    splits = [os.path.join(directory, name) for name in folders if is_split(name)]
    holds_splits = are_splits(folders) or any(map(image_files.subfolders, splits))
    return bool(folders) and not holds_splits


def _is_unlabelled(directory: str) -> bool:
    """Whether a folder holds images, and no folder of a class, as test images of competitions."""
    if image_files.subfolders(directory):
        return False
    return bool(image_files.images_in(directory, image_files.LeftOut()))


# --- files ---------------------------------------------------------------------------------------


def open_file(file: PathLike, train: PathLike | None = None) -> TableSource | ArraySource:
    """All images of a table or of an `.npz`, with their labels or without.

    Args:
      file: Table of paths or of pixels, or `.npz` of arrays. Of arrays for several splits, the test
        split is read.
      train: File that the model is trained on, which names the classes; None takes those of `file`.
        Images without labels have the label [].

    Raises:
      UserError: if the file is none of these, cannot be read or does not fit `train`.
    """
    suffix = os.path.splitext(file)[1].lower()
    if suffix not in FILE_SUFFIXES:
        raise UserError(
            f"{file} is no dataset: expected a folder, a TensorFlow Datasets name, or a file with "
            f"the suffix {', '.join(FILE_SUFFIXES)}"
        )
    if suffix != ".npz" and not array_source.is_pixel_table(file):
        return TableSource(file, train)
    known = None if train is None else _open_arrays(train, "train").class_names
    return _open_arrays(file, "test", known)


def _open_arrays(file: PathLike, split: str, known: list[str] | None = None) -> ArraySource:
    """The images of a table of pixels, or of an `.npz` those of a split, if it names splits."""
    if os.path.splitext(file)[1].lower() != ".npz":
        return array_source.open_pixel_table(file, known)
    parts = array_source.npz_parts(file)
    names = (split, *TEST_SPLITS) if split in TEST_SPLITS else (split,)
    part = next((name for name in names if name in parts), None)
    return array_source.open_npz(file, part or (parts[0] if len(parts) == 1 else None), known)


def _open_split_of_file(file: str, split: str | None, labelled: bool) -> Source:
    if split is None:
        return open_file(file)
    suffix = os.path.splitext(file)[1]
    if suffix.lower() == ".npz" and set(array_source.npz_parts(file)) & set(TEST_SPLITS):
        return _open_arrays(file, split, _open_arrays(file, "train").class_names)
    folder = os.path.dirname(file)
    path, test = split_path(folder, split, suffix), split_path(folder, "test", suffix)
    if split not in ("train", *TEST_SPLITS):
        return open_file(path, file)
    if not stores.exists(test) or (labelled and not open_file(test).num_classes):
        return _held_out(open_file(file), split, test)
    if split == "train":
        return open_file(file)
    return open_file(path, file if open_file(path).num_classes else None)


def _held_out(source: LabelledSource, split: str, test: str = "") -> Source:
    """The training images without those that are held out, or the latter; a warning says so."""
    part = held_out(source, train=split == "train")
    why = f"{test} has no labels" if stores.exists(test) else "there is no test split"
    image_files.warn_once(
        f"{source.description}: {why}; a tenth of the images of each class is held out of training "
        "for validation, chosen by a fixed seed"
    )
    return part


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
        return _info(source, examples_glob=_pattern(source.description))
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
    return _info(FolderSource(directory), examples_glob=_pattern(directory))


def _pattern(directory: PathLike) -> str:
    return os.path.join(glob.escape(os.fspath(directory)), "*", "*")


def _info(source: Source, examples_glob: str | None) -> dict[str, Any]:
    return {
        "num_examples": len(source),
        "num_classes": source.num_classes,
        "int2str": source.int2str,
        "examples_glob": examples_glob,
    }

"""Examples in files of ArrayRecord that a pattern names, as `vit-jax prepare` writes them."""

import json
import os
import re
from collections.abc import Callable
from typing import Any

from vit_jax import stores
from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import copies
from vit_jax.input_pipeline.classes import names_of
from vit_jax.input_pipeline.preparing.inputs import split_in
from vit_jax.input_pipeline.records import TEST_SPLITS, PathLike, Record
from vit_jax.input_pipeline.tfds_source import label_feature, named, record_of

_NAME = re.compile(r"\.array_?record(-[\d?*\[\]-]+of[\d?*\[\]-]+|[-*?\[\]\d]*)?$")


def is_array_record(dataset: str) -> bool:
    """Whether a dataset's name is a pattern of files of ArrayRecord, or the path of one."""
    return _NAME.search(dataset) is not None


class ArrayRecordSource:
    """The images and labels of all files that match a pattern and are of one split.

    Args:
      pattern, split: As of `Examples`.

    Raises:
      UserError: as `Examples`; for examples without label; or if folders have other classes than
        the first one.
    """

    def __init__(self, pattern: PathLike, split: str | None = None):
        self._examples = Examples(pattern, split)
        first, *others = self._examples.folders
        label = label_feature(self._examples.features, first)
        self.num_classes: int = label.num_classes
        self.int2str: Callable[[int], str] = label.int2str
        for folder in others:
            other = label_feature(_features(folder), folder)
            if names_of(self) != [other.int2str(i) for i in range(other.num_classes)]:
                raise UserError(f"{first} and {folder} have other classes, or another order")
        self.description = self._examples.description

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        return record_of(*self._examples[index])


class Examples:
    """The examples of all files that match a pattern and are of one split.

    Each folder with such files has TFDS's description of its examples, `features.json`, and the
    names of the classes, `label.labels.txt`. The name of a file says which split it is of, as
    `photos-train.array_record-00000-of-00012` does.

    Args:
      pattern: A path or an address in which `*`, `?` and `[…]` stand for parts of names. Files in
        a store are copied to this disk first, see `copies.py`.
      split: The split; None takes all files.

    Attributes:
      folders: Those of the files.
      features: What an example of the first folder holds.
      description: What is read.

    Raises:
      UserError: if no file matches, if their names do not tell their split, or if a description is
        missing.
    """

    def __init__(self, pattern: PathLike, split: str | None = None):
        import grain

        files = copies.of_files(_of_split(os.fspath(pattern), split))
        self.folders = list(dict.fromkeys(os.path.dirname(file) for file in files))
        self.features = _features(self.folders[0])
        self.description = f"{pattern}" + (f"[{split}]" if split else "")
        try:
            self._records: Any = grain.sources.ArrayRecordDataSource(files)
            self._count = len(self._records)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"cannot read the files {pattern}: {error}") from error

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """The decoded example, with the encoded bytes of its image, and its name for messages."""
        import tensorflow_datasets as tfds

        example = self.features.deserialize_example_np(
            self._records[index], decoders={"image": tfds.decode.SkipDecoding()}
        )
        return example, named(example, f"{self.description} example {index}")


def _of_split(pattern: str, split: str | None) -> list[str]:
    """The files of a split, which their names tell."""
    files = stores.matching(pattern)
    if not files:
        raise UserError(f"no file matches {pattern}")
    if split is None:
        return files
    splits = {file: split_in(os.path.basename(file).partition(".array")[0]) for file in files}
    names = (split, *TEST_SPLITS) if split in TEST_SPLITS else (split,)
    wanted = next((name for name in names if name in splits.values()), None)
    if wanted is None:
        known = sorted({str(found) for found in splits.values() if found is not None})
        raise UserError(
            f"of the {len(files)} files that match {pattern}, none is of the split {split!r} by "
            f"its name; splits that are there: {some(known) or 'none'}"
        )
    return [file for file, found in splits.items() if found == wanted]


def _features(folder: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.features.FeatureConnector.from_config(folder)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"{folder or '.'} has no readable features.json, which says what its records hold; "
            "`vit-jax prepare` writes it"
        ) from error

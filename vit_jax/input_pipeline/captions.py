"""Images with captions: tables, folders with texts beside the images, ArrayRecord and TFDS.

All sources are random-access sequences of `{'image': encoded bytes or pixels, 'name': str,
'captions': one or several texts}`, which can be pickled. They have no classes. `open_captions`
chooses the source by the name of the dataset.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.errors import UserError, some
from vit_jax.families.text import Text
from vit_jax.input_pipeline import (
    array_record_source,
    copies,
    image_files,
    sources,
    table_source,
    tables,
    tfds_source,
)
from vit_jax.input_pipeline.chain import Record, generator
from vit_jax.input_pipeline.held_out import held_out
from vit_jax.input_pipeline.records import TEST_SPLITS, PathLike, read_image

OBJECTIVE = "contrastive"  # the value of `config.objective` whose datasets have captions
SUFFIX = ".txt"  # of the captions beside an image, one a line


def text_of(config: Any) -> Text:
    """How the texts of a run with a complete config become tokens.

    Raises:
      UserError: if the config does not say it; if the vocabulary cannot be read, or has more
        entries than the model.
    """
    text = config.text
    if not text.kind or not text.vocabulary:
        raise UserError(
            "config.text.kind and config.text.vocabulary must say how texts become tokens, such as "
            "--config.text.kind=bert --config.text.vocabulary=vocab.txt; got "
            f"{text.kind!r} and {text.vocabulary!r}"
        )
    found = Text(text.kind, text.vocabulary, text.length)
    entries = _tokenizer(found).pieces.size
    known = ((config.model or {}).get("text") or {}).get("vocab_size", entries)
    if entries > known:
        raise UserError(
            f"the vocabulary {text.vocabulary} has {entries} entries, and the model a place for "
            f"{known}: set --config.model.text.vocab_size={entries}, or take its own vocabulary"
        )
    return found


def open_captions(
    dataset: str,
    split: str | None = None,
    *,
    data_dir: PathLike | None = None,
    manual_dir: PathLike | None = None,
) -> Any:
    """Opens one split of a dataset of images with captions.

    Where there is no test split, a tenth of the images is held out of 'train', and is the test
    split; see `held_out.py`.

    Args:
      dataset: A path, or the address of the same in a store, of a table of paths and captions, see
        `of_table`, with the test split in a file `test`, `val`, … of the same suffix beside it; of
        a folder of images with captions beside them, see `of_folder`, or of a folder
        `{train,test}/` of such; of a dataset that TFDS or `vit-jax prepare --captions` has
        prepared; a pattern of such files of ArrayRecord; or else a TFDS name, such as
        'coco_captions'.
      split: As for `sources.open_source`; None reads all of a file or folder.
      data_dir, manual_dir: As in `TfdsSource`.

    Raises:
      UserError: if it cannot be opened, or an image has no caption; the message names the file, and
        the line if there is one.
    """
    if array_record_source.is_array_record(dataset):
        split = split and sources.without_slice(split, dataset)
        found = array_record_source.Examples(dataset, split)
        caption_feature(found.features, dataset)
        return StoredCaptions(found)
    if tfds_source.is_prepared_folder(dataset):
        found = tfds_source.Examples(
            copies.of_folder(dataset), split or "test", check=caption_feature
        )
        return StoredCaptions(found)
    if dataset.lower().endswith(tables.SUFFIXES):
        return _split(dataset, split, of_table)
    if stores.is_dir(dataset):
        return _split(dataset, split, of_folder)
    if stores.exists(dataset) or stores.is_address(dataset):
        raise UserError(
            f"{dataset} is no dataset of captions: expected a folder, a TensorFlow Datasets name, "
            f"or a table with the suffix {', '.join(tables.SUFFIXES)}; of tar files `vit-jax "
            "prepare --captions` makes one"
        )
    return StoredCaptions(
        tfds_source.Examples(dataset, split or "test", data_dir, manual_dir, check=caption_feature)
    )


def _split(dataset: str, split: str | None, opened: Callable[[str], "Captions"]) -> Any:
    """A split of a table or of a folder, held out of the training images if there is no test."""
    if split is None:
        return opened(dataset)
    split = sources.without_slice(split, dataset)
    if stores.is_dir(dataset):
        train, folder, suffix = os.path.join(dataset, "train"), dataset, ""
        train = train if stores.is_dir(train) else dataset
    else:
        train, folder, suffix = dataset, os.path.dirname(dataset), os.path.splitext(dataset)[1]
    path, test = (sources.split_path(folder, name, suffix) for name in (split, "test"))
    if split not in ("train", *TEST_SPLITS):
        return opened(path)
    if stores.exists(test):
        return opened(train if split == "train" else test)
    image_files.warn_once(
        f"{dataset}: there is no test split; a tenth of the images is held out of training for "
        "validation, chosen by a fixed seed"
    )
    return held_out(opened(train), train=split == "train")


# --- tables and folders --------------------------------------------------------------------------


class Captions:
    """Image files with their captions, which are in memory.

    Args:
      description: What is read, for people.
      captions: The captions of each path, at least one.
    """

    num_classes = 0

    def __init__(self, description: str, captions: Mapping[str, Sequence[str]]):
        self.description = description
        self._paths, self._captions = list(captions), [list(texts) for texts in captions.values()]

    @property
    def labels(self) -> list[int]:
        """0 for each image: all are alike to what draws a share of them."""
        return [0] * len(self)

    def int2str(self, label: int) -> str:
        raise IndexError(f"{self.description} has captions and no classes; got class {label}")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        path = self._paths[index]
        return {"image": read_image(path), "name": path, "captions": list(self._captions[index])}


def of_table(file: PathLike) -> Captions:
    """The images of a table of paths and captions, see `tables.py`.

    A cell of JSON or Parquet may be a list of captions. An image with several rows has the captions
    of all of them, in their order. Paths are relative to the table's folder.

    Raises:
      UserError: if the file is missing, empty or malformed, if an image that it names does not
        exist, or if a caption is empty; the message names its place.
    """
    file = os.fspath(file)
    rows, found = tables.read_rows(file, tables.CAPTIONS)
    if not rows or not found:
        raise UserError(f"no images with captions in {file}: {tables.expected(tables.CAPTIONS)}")
    captions: dict[str, list[str]] = {}
    for row, path in zip(rows, table_source.paths_of(file, rows, tables.CAPTIONS), strict=True):
        captions.setdefault(path, []).extend(_texts(row.label, f"{file}, {row.place}"))
    return Captions(file, captions)


def of_folder(directory: PathLike) -> Captions:
    """The images in a folder and all folders below it, with the captions beside them.

    Beside `NAME.jpg` lies `NAME.txt`, in UTF-8; each of its lines is a caption.

    Raises:
      UserError: if there is no image, if an image has no such file, or if that is empty.
    """
    directory, left_out = os.fspath(directory), image_files.LeftOut()
    paths = image_files.images_below(directory, left_out)
    if not paths:
        raise UserError(
            f"no images in {directory} or the folders below it: expected images, and beside each "
            f"NAME.jpg its captions NAME{SUFFIX}, one a line"
        )
    beside = {path: os.path.splitext(path)[0] + SUFFIX for path in paths}
    if missing := [path for path, text in beside.items() if not stores.is_file(text)]:
        raise UserError(
            f"{len(missing)} of the {len(paths)} images of {directory} have no captions: expected "
            f"{some([beside[path] for path in missing], 3)}, with one caption a line"
        )
    return Captions(directory, {path: _lines(text) for path, text in beside.items()})


def _lines(file: str) -> list[str]:
    try:
        text = stores.read_bytes(file).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the captions {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the captions {file} are no text in UTF-8: {error}") from error
    return _texts([line for line in text.splitlines() if line.strip()], file)


def _texts(cell: Any, place: str) -> list[str]:
    """The captions in a cell: a text, or a list of texts.

    Raises:
      UserError: for no caption, an empty one, or what is no text; the message names `place`.
    """
    found = list(cell) if isinstance(cell, list | tuple | np.ndarray) else [cell]
    found = [text.decode() if isinstance(text, bytes) else text for text in found]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        wrong = next((text for text in found if not isinstance(text, str) or not text.strip()), "")
        raise UserError(
            f"{place}: an image must have at least one caption, and none that is empty; got "
            f"{wrong!r}"
        )
    return [text.strip() for text in found]


# --- TFDS and ArrayRecord ------------------------------------------------------------------------


class StoredCaptions:
    """The images and captions of examples as TFDS describes them.

    Args:
      examples: `tfds_source.Examples` or `array_record_source.Examples` for which `caption_feature`
        raises nothing.

    Raises:
      UserError: from an access, for an example without a caption, or with an empty one.
    """

    num_classes = 0

    def __init__(self, examples: Any):
        self._examples, self.description = examples, examples.description
        self._field, self._inside = caption_feature(examples.features, examples.description)

    int2str = Captions.int2str

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        example, name = self._examples[index]
        cell = example[self._field]
        if self._inside is not None:
            # Some readers give a list of captions, each with its fields, others the fields with
            # their lists.
            listed = isinstance(cell, list | tuple | np.ndarray)
            cell = [one[self._inside] for one in cell] if listed else cell[self._inside]
        return {"image": example["image"], "name": name, "captions": _texts(cell, name)}


def caption_feature(features: Any, dataset: str) -> tuple[str, str | None]:
    """The name of the feature that holds captions, and inside of it that of their texts, if any.

    A feature is recognised by its name, as a column of a table is, and holds a text or several; or,
    as that of COCO does, several groups of features, of which one is so called.

    Raises:
      UserError: if there is no image, or none or several features that could be the captions.
    """
    import tensorflow_datasets as tfds

    known = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    found = {}
    for name, feature in known.items():
        inside = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        if not tables.is_caption(name):
            continue
        if isinstance(inside, tfds.features.Text):
            found[name] = None
        elif isinstance(inside, tfds.features.FeaturesDict):
            texts = [key for key in inside if tables.is_caption(key)]
            if len(texts) == 1:
                found[name] = texts[0]
    if "image" not in known or len(found) != 1:
        what = "several that could be captions" if found else "no captions"
        raise UserError(
            f"the dataset {dataset!r} has no image, or {what}: expected the features 'image' and "
            f"'captions' (texts), found {sorted(known) or [features]}"
        )
    return next(iter(found.items()))


# --- examples ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The last step of a preparation: the image, and one of its captions as tokens, int32 [L].

    Attributes:
      text: How captions become tokens.
      drawn: Whether the caption is drawn at random, as in training; otherwise it is the first.
    """

    text: Text
    drawn: bool = False

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        captions = record["captions"]
        number = int(generator(rng, self).integers(len(captions))) if self.drawn else 0
        return {"image": record["image"], "tokens": tokens([captions[number]], self.text)[0]}


def tokens(texts: Sequence[str], text: Text) -> np.ndarray:
    """Texts as tokens, int32 [N, L].

    Raises:
      UserError: as `vit_jax.text.get_tokenizer`.
    """
    return np.asarray(_tokenizer(text)(texts), np.int32)


@functools.cache
def _tokenizer(text: Text) -> Any:
    # Each process that prepares examples reads the vocabulary once.
    from vit_jax.text import get_tokenizer

    return get_tokenizer(text)

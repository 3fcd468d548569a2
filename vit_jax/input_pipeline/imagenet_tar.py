"""ImageNet (ILSVRC 2012) from its own tar files, without unpacking them.

The folder holds the files as image-net.org gives them out:

    ILSVRC2012_img_train.tar          a tar of one tar a class, `<WordNet id>.tar`
    ILSVRC2012_img_val.tar            50,000 images
    ILSVRC2012_devkit_t12.tar.gz      the classes of the validation images; or, in its place,
    ILSVRC2012_val_labels.txt         the WordNet id of each validation image, a line each, in
                                      the order of the images' names

The index of a tar, which says where in the tar every image lies, is made once; that takes about a
minute for the training file. The index is kept beside the tar, or in `~/.cache/vit_jax` if the
tar's folder cannot be written to. The classes are the sorted WordNet ids, which is the order of the
outputs of the published models.
"""

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.input_pipeline.records import IMAGE_SUFFIXES, TEST_SPLITS, PathLike, Record

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT, VAL_LABELS = "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_val_labels.txt"
_TRUTH, _META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"

Index = dict[str, np.ndarray]


def is_imagenet(directory: PathLike) -> bool:
    """Whether a folder holds ImageNet's tar files."""
    return any(stores.is_file(os.path.join(directory, name)) for name in (TRAIN, VAL))


class ImagenetTarSource:
    """One split of ImageNet in its tar files; the module's docstring describes them.

    Args:
      directory: Folder of the tar files.
      split: 'train', or one of `records.TEST_SPLITS`, which mean the same split.

    Raises:
      UserError: for an unknown split, a missing or damaged file, or labels that do not fit the
        images.
    """

    def __init__(self, directory: PathLike, split: str):
        if split not in ("train", *TEST_SPLITS):
            raise UserError(f"ImageNet in {directory} has no split {split!r}: 'train' or 'val'")
        directory, train = Path(directory), split == "train"
        self._tar = directory / (TRAIN if train else VAL)
        self.description = str(self._tar)
        self._index = tar_index(self._tar)
        classes = self._index["folder"] if train else _val_classes(directory, self._index)
        known = classes
        if not train and (directory / TRAIN).is_file():
            known = tar_index(directory / TRAIN)["folder"]
        ids = np.unique(known)
        if strangers := sorted(set(classes.tolist()) - set(ids.tolist())):
            names = [name.decode() for name in strangers[:10]]
            raise UserError(f"{self._tar} has classes that {TRAIN} lacks: {names}")
        self._class_names = [name.decode() for name in ids.tolist()]
        self._labels = np.searchsorted(ids, classes).astype(np.int32)
        self.num_classes = len(self._class_names)
        self._file: Any = None

    def int2str(self, label: int) -> str:
        """The WordNet id of class number `label`."""
        return self._class_names[label]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        offset, size = int(self._index["offset"][index]), int(self._index["size"][index])
        if self._file is None:
            self._file = open(self._tar, "rb", buffering=0)  # noqa: SIM115 (stays open)
        # `pread` leaves the position in the file alone, so that threads can share one open file.
        image = os.pread(self._file.fileno(), size, offset)
        name = f"{self._tar}:{self._index['name'][index].decode()}"
        return {"image": image, "label": int(self._labels[index]), "name": name}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}  # A worker process opens the tar itself.


# --- the index -----------------------------------------------------------------------------------


def tar_index(tar: Path) -> Index:
    """The places of the images in a tar and in the tars within it.

    The index is read from its cache if the tar has not changed since it was made, and is made
    otherwise.

    Returns:
      Arrays with one row for each image, in the order of 'folder' and 'name': 'offset', the first
      byte of the image, counted from the start of the outer tar; 'size' in bytes; 'name'; and
      'folder', the name without suffix of the inner tar that holds the image (empty if the outer
      tar itself holds it).

    Raises:
      UserError: if the tar is missing, damaged or without images.
    """
    try:
        stat = tar.stat()
    except OSError as error:
        raise UserError(f"cannot read {tar}: {error.strerror}") from error
    stamp = np.array([stat.st_size, stat.st_mtime_ns])
    for place in _cache_files(tar):
        index = _load(place)
        if index is not None and np.array_equal(index.pop("stamp"), stamp):
            return index
    index = _make_index(tar, stat.st_size)
    for place in _cache_files(tar):
        try:
            _save(place, {**index, "stamp": stamp})
            break
        except OSError:  # The folder is read-only or the disk is full; the cache is no necessity.
            continue
    return index


def _cache_files(tar: Path) -> tuple[Path, Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_jax"
    digest = hashlib.sha256(os.fsencode(tar.absolute())).hexdigest()[:16]
    return tar.with_name(f"{tar.name}.index.npz"), cache / f"{tar.name}.{digest}.index.npz"


def _load(place: Path) -> Index | None:
    try:
        with np.load(place, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("offset", "size", "name", "folder", "stamp")}
    except Exception:  # A cache that is missing or not in our format is made again.
        return None


def _save(place: Path, index: Index) -> None:
    """Writes the index under another name and renames it, so that no process reads a part of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with open(descriptor, "wb") as file:
            np.savez(file, **index)  # pyright: ignore
        os.chmod(temporary, 0o644)
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise


def _make_index(tar: Path, tar_size: int) -> Index:
    try:
        with open(tar, "rb") as file:
            rows = sorted(_members(file), key=lambda row: row[:2])
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{tar} is damaged, or no tar file: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {tar}: {error.strerror}") from error
    if not rows:
        raise UserError(f"no images in {tar}")
    folders, names, offsets, sizes = zip(*rows, strict=True)
    index = {
        "folder": np.array([os.fsencode(name) for name in folders]),
        "name": np.array([os.fsencode(name) for name in names]),
        "offset": np.array(offsets, np.int64),
        "size": np.array(sizes, np.int64),
    }
    if (end := int((index["offset"] + index["size"]).max())) > tar_size:
        raise UserError(f"{tar} was cut off: its images end at byte {end}, the file at {tar_size}")
    return index


def _members(file: Any, folder: str = "", start: int = 0) -> Iterator[tuple[str, str, int, int]]:
    """(folder, name, offset, size) of every image; `offset` counts from the outer tar's start."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            stem, suffix = os.path.splitext(os.path.basename(member.name))
            if not member.isfile():
                continue
            if suffix == ".tar" and not folder:
                inner = archive.extractfile(member)
                yield from _members(inner, folder=stem, start=member.offset_data)
            elif suffix.lower() in IMAGE_SUFFIXES:
                yield folder, member.name, start + member.offset_data, member.size
            # tarfile keeps every header that it has read, which would be a million for ImageNet.
            archive.members = []  # pyright: ignore


# --- the labels of the validation images ---------------------------------------------------------


def _val_classes(directory: Path, index: Index) -> np.ndarray:
    """The WordNet id of every validation image, as bytes."""
    labels, devkit = directory / VAL_LABELS, directory / DEVKIT
    try:
        if labels.is_file():
            ids = labels.read_text().split()
        elif devkit.is_file():
            ids = _devkit_classes(devkit)
        else:
            raise UserError(
                f"the classes of {VAL} are not known: put {DEVKIT} beside it, or a text file "
                f"{VAL_LABELS} with a WordNet id for each image in name order"
            )
    except (OSError, tarfile.TarError, KeyError, ValueError, IndexError, EOFError) as error:
        raise UserError(f"cannot read the classes of {VAL} in {directory}: {error}") from error
    if len(ids) != len(index["name"]):
        raise UserError(
            f"{labels if labels.is_file() else devkit} has {len(ids)} classes for the "
            f"{len(index['name'])} images of {VAL}"
        )
    return np.array([name.encode() for name in ids])


def _devkit_classes(devkit: Path) -> list[str]:
    """The WordNet id of every validation image, from the devkit's own numbers of the classes."""
    from scipy import io as scipy_io

    contents = {}
    with tarfile.open(devkit) as archive:
        for member in archive:
            for wanted in (_TRUTH, _META):
                if member.name.endswith(wanted):
                    file = archive.extractfile(member)
                    assert file is not None
                    contents[wanted] = file.read()
    meta = scipy_io.loadmat(io.BytesIO(contents[_META]), squeeze_me=True)["synsets"]
    ids = dict(zip(meta["ILSVRC2012_ID"].tolist(), meta["WNID"].tolist(), strict=True))
    return [str(ids[int(number)]) for number in contents[_TRUTH].split()]

"""The files that a command line names: paths, patterns and folders, each with its split."""

import glob
import os
import re
from collections.abc import Sequence

from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import imagenet_tar
from vit_jax.input_pipeline.preparing import hugging_face, webdataset
from vit_jax.input_pipeline.preparing.samples import ANY_FIELDS, Fields, SampleFile
from vit_jax.input_pipeline.records import TEST_SPLITS

_TABLES = (hugging_face.PARQUET, hugging_face.ARROW)
SUFFIXES = (*webdataset.SUFFIXES, *_TABLES)
_SPLIT = re.compile(rf"(?:^|[-_.])(train|{'|'.join(TEST_SPLITS)})(?=[-_.\d]|$)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


def is_input(name: str) -> bool:
    """Whether an argument of `vit-jax prepare` names such files, and no other dataset."""
    _, pattern = _divided(name)
    if pattern != name or pattern.lower().endswith(SUFFIXES) or _BRACES.search(pattern):
        return True
    if not os.path.isdir(pattern) or imagenet_tar.is_imagenet(pattern):
        return False
    return bool(_of_folder(pattern))


def find(
    names: Sequence[str], fields: Fields = ANY_FIELDS, numbered: Sequence[str] | None = None
) -> dict[str, list[SampleFile]]:
    """The files of each split, in their order.

    Args:
      names: Each is PATTERN or SPLIT=PATTERN. A pattern is the path of a file or folder, in which
        `*` and `?` stand for any characters, `{000..146}` for numbers and `{a,b}` for either. A
        folder is one that Hugging Face's `save_to_disk` wrote, or one with files in it or in its
        subfolder `data`. Without SPLIT the name of a file, or of its folder, says which split it
        is of, as `imagenet-train-0001.tar` does.
      fields: The fields of a sample to take.
      numbered: Names of the classes by their numbers, where the files do not have them.

    Raises:
      UserError: if a pattern matches nothing, or a file's format or split is not known.
    """
    splits: dict[str, list[SampleFile]] = {}
    seen: dict[str, str] = {}
    for name in names:
        given, pattern = _divided(name)
        for split, path in _files(pattern):
            split = given or split or _split_of(path)
            if path in seen:
                raise UserError(f"{path} is named twice, for {seen[path]} and {split}")
            seen[path] = split
            splits.setdefault(split, []).append(_open(path, fields, numbered))
    return splits


def _divided(name: str) -> tuple[str, str]:
    """The split and the pattern of SPLIT=PATTERN; the split is '' if none is given."""
    match = re.fullmatch(r"([A-Za-z]\w*)=(.+)", name)
    return (match[1], match[2]) if match and not os.path.exists(name) else ("", name)


def _files(pattern: str) -> list[tuple[str, str]]:
    """(split or '', path) of all files that a pattern means."""
    found = []
    for one in expanded(os.path.expanduser(pattern)):
        paths = sorted(glob.glob(one)) if glob.has_magic(one) else [one]
        if not paths:
            raise UserError(f"no file matches {one}")
        if missing := [path for path in paths if not os.path.exists(path)]:
            raise UserError(f"there is no file {some(missing)}, which {pattern} names")
        for path in paths:
            found += _of_folder(path, strict=True) if os.path.isdir(path) else [("", path)]
    return found


def expanded(pattern: str) -> list[str]:
    """The patterns that braces stand for, `{08..11}` for 08, 09, 10 and 11."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    numbers = _NUMBERS.fullmatch(match[1])
    parts = match[1].split(",")
    if numbers:
        width = len(numbers[1]) if numbers[1].startswith("0") else 1
        first, last = int(numbers[1]), int(numbers[2])
        if last < first:
            raise UserError(f"{pattern}: {{{match[1]}}} has no number")
        parts = [f"{number:0{width}}" for number in range(first, last + 1)]
    elif len(parts) == 1:
        raise UserError(f"{pattern}: expected {{FIRST..LAST}} or {{ONE,OTHER}}, got {match[0]}")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [path for part in parts for path in expanded(f"{head}{part}{tail}")]


def _of_folder(folder: str, *, strict: bool = False) -> list[tuple[str, str]]:
    """(split or '', path) of all files of a folder; with `strict` it is an error if none is."""
    if hugging_face.is_on_disk(folder):
        splits = hugging_face.splits_on_disk(folder)
        return [(split, path) for split, paths in splits.items() for path in paths]
    for place in (folder, os.path.join(folder, "data")):
        names = sorted(os.listdir(place)) if os.path.isdir(place) else []
        if found := [("", os.path.join(place, n)) for n in names if n.lower().endswith(SUFFIXES)]:
            return found
    if strict:
        raise UserError(f"{folder} holds no {', '.join(SUFFIXES)}, nor does its subfolder data")
    return []


def split_in(name: str) -> str | None:
    """The one split that the name of a file says it is of; None if it names none, or several."""
    found = set(_SPLIT.findall(name.lower()))
    return found.pop() if len(found) == 1 else None


def _split_of(path: str) -> str:
    """The split of which the name of a file, or else of its folder, says that it is."""
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    split = split_in(os.path.basename(path)) or split_in(folder)
    if split is None:
        raise UserError(f"which split is {path}? Say it before the pattern, such as train=PATTERN")
    return split


def _open(path: str, fields: Fields, numbered: Sequence[str] | None) -> SampleFile:
    names = None if numbered is None else tuple(numbered)
    lower = path.lower()
    if lower.endswith(webdataset.SUFFIXES):
        return webdataset.WebDatasetFile(path, fields, names)
    if lower.endswith(_TABLES):
        return hugging_face.TableFile(path, fields, names)
    raise UserError(f"{path} is of no format that is known: expected {', '.join(SUFFIXES)}")

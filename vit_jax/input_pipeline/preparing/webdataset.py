"""WebDataset's shards: tar files whose consecutive members of one name are a sample.

`images/0001.jpg`, `images/0001.cls` and `images/0001.json` are the fields jpg, cls and json of the
sample `images/0001` (https://github.com/webdataset/webdataset). The label is the text of `cls`, a
number or a name, or else the entry of the JSON object that is called label, class or the like.
Captions are the lines of `txt`, or else the entry that is called caption or the like.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from vit_jax.errors import UserError, short
from vit_jax.input_pipeline import tables
from vit_jax.input_pipeline.preparing.samples import (
    ANY_FIELDS,
    Fields,
    Sample,
    captions_of,
    chosen_field,
    labels_of,
    the_one,
)
from vit_jax.input_pipeline.records import IMAGE_SUFFIXES

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_ERRORS = (tarfile.TarError, EOFError, zlib.error, OSError)  # of a damaged file
_LABEL, _CAPTIONS, _JSON = "cls", "txt", "json"


class Place(NamedTuple):
    """Where the bytes of a member lie in its tar file, which is not compressed."""

    offset: int
    size: int


Members = dict[str, bytes | Place]  # field -> content, or where it lies if it was not read


@dataclasses.dataclass(frozen=True)
class WebDatasetFile:
    """One shard.

    Attributes:
      path: The path of the tar file.
      fields: The fields to take; an entry of a JSON object is `json.NAME`.
      numbered: Names of the classes by their numbers; None takes the labels as they are.
    """

    path: str
    fields: Fields = ANY_FIELDS
    numbered: tuple[str, ...] | None = None

    def class_names(self) -> list[str] | None:
        """None: a shard declares no classes, unless the user gives their names."""
        return None if self.numbered is None else list(self.numbered)

    def several_labels(self) -> bool:
        """False: the format does not tell, and one label is usual."""
        return False

    def read(self, start: int = 0, *, images: bool = True) -> Iterator[Sample]:
        """See `SampleFile.read`."""
        samples, key = _samples(self.path, images), None
        try:
            for key, members in itertools.islice(samples, start, None):
                yield self._sample(f"{self.path}: {key}", members)
        except _ERRORS as error:
            why = f"the tar file is damaged from here on: {error}"
            yield Sample(f"{self.path}: after {key}", problem=why)

    def places(self) -> Iterator[tuple[str, Place | None, tuple[str, ...]]]:
        """For each sample its name, where its image lies, and the names of its classes.

        The place is None for a sample without an image, and there are no classes where nothing
        tells them. No image is read; the file must not be compressed.

        Raises:
          UserError: if the file is missing, damaged, or not a tar that can be read at random.
        """
        key = None
        try:
            for key, members in _samples(self.path, images=False, mode="r:"):
                name = f"{self.path}: {key}"
                image = _image_field(name, members, self.fields.image)
                labels = ()
                with contextlib.suppress(UserError):  # Its JSON has no entry of labels, or several.
                    cell, problem = _cell(name, members, self.fields)
                    if not problem:
                        labels, _ = labels_of(cell, self.numbered, several=True)
                place = None if image is None else members[image]
                yield name, place if isinstance(place, Place) else None, labels
        except _ERRORS as error:
            where = "" if key is None else f" after the sample {key}"
            raise UserError(
                f"{self.path} is damaged{where}, or no tar file that is not compressed: {error}"
            ) from error

    def _sample(self, name: str, members: Members) -> Sample:
        image = _image_field(name, members, self.fields.image)
        if image is None:
            return Sample(name, problem="it has no image, only " + ", ".join(sorted(members)))
        cell, problem = _cell(name, members, self.fields)
        if problem:
            return Sample(name, problem=problem)
        if self.fields.captions:
            labels, problem = captions_of(cell)
        else:
            labels, problem = labels_of(cell, self.numbered, several=isinstance(cell, list))
        content = members[image]
        return Sample(
            name, labels, content if isinstance(content, bytes) else None, problem or None
        )


def _samples(path: str, images: bool, mode: str = "r:*") -> Iterator[tuple[str, Members]]:
    """(key, members) of each sample of a tar; contents of images only if they are wanted."""
    key, members, damage = None, {}, None
    try:
        for place, field, content in _members(path, images, mode):
            if place != key:
                if key is not None:
                    yield key, members
                key, members = place, {}
            if field in members:
                raise UserError(f"{path}: the sample {key} has {field} twice")
            members[field] = content
    except _ERRORS as error:
        damage = error  # The members before the damage may be a whole sample.
    if key is not None:
        yield key, members
    if damage is not None:
        raise damage


def _members(path: str, images: bool, mode: str) -> Iterator[tuple[str, str, bytes | Place]]:
    """(key, field, content or its place) of each member, in the order of the tar."""
    with tarfile.open(path, mode) as archive:  # pyright: ignore (mode is one of its own)
        for member in archive:
            folder, name = os.path.split(member.name)
            stem, dot, field = name.partition(".")
            if member.isfile() and stem and dot:
                content: bytes | Place = Place(member.offset_data, member.size)
                if images or not _is_image(field):
                    file = archive.extractfile(member)
                    assert file is not None
                    content = file.read()
                yield os.path.join(folder, stem), field.lower(), content
            # tarfile keeps every header that it has read.
            archive.members = []  # pyright: ignore


def _is_image(field: str) -> bool:
    return f".{field.lower().rpartition('.')[2]}" in IMAGE_SUFFIXES


def _image_field(name: str, members: Members, wanted: str | None) -> str | None:
    if wanted is not None:
        return wanted if wanted in members else None
    found = [field for field in members if _is_image(field)]
    return the_one(name, "image", found, list(members)) if found else None


def _cell(name: str, members: Members, fields: Fields) -> tuple[Any, str]:
    """The cell of labels or captions, and what is wrong with it, if anything."""
    content, wanted = fields.content, fields.label
    field, _, entry = (wanted or "").partition(".")
    usual = _CAPTIONS if fields.captions else _LABEL
    if wanted is None and usual in members:
        wanted = usual
    if wanted is not None and not (field == _JSON and entry):
        text, problem = _text(members, wanted)
        if fields.captions and not problem:
            text = [line for line in text.splitlines() if line.strip()]
        return text, problem
    told = members.get(_JSON)
    if not isinstance(told, bytes):
        return None, f"it has no {content.name}, only {', '.join(sorted(members))}"
    try:
        cells = json.loads(told)
    except ValueError as error:
        return None, f"its json is none: {error}"
    if not isinstance(cells, dict):
        return None, f"its json is no object: {short(repr(cells))}"
    if entry:
        return cells.get(chosen_field(name, content.name, entry, list(cells))), ""
    found = [key for key in cells if content.pattern.fullmatch(tables.squash(key))]
    return cells[the_one(name, content.name, found, list(cells))], ""


def _text(members: Members, field: str) -> tuple[Any, str]:
    content = members.get(field)
    if not isinstance(content, bytes):
        return None, f"it has no {field}, only {', '.join(sorted(members))}"
    try:
        return content.decode(), ""
    except UnicodeDecodeError:
        return None, f"its {field} is no text in UTF-8"

"""What a file of samples gives, whatever its format."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import tables
from vit_jax.input_pipeline.decode import DamagedImage


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of a sample to take, by the names of columns or suffixes; None finds them.

    Attributes:
      image, label: The names.
      captions: Whether captions are taken in place of labels; `label` is then their field.
    """

    image: str | None = None
    label: str | None = None
    captions: bool = False

    @property
    def content(self) -> tables.Content:
        """What is told of the images."""
        return tables.CAPTIONS if self.captions else tables.LABELS


ANY_FIELDS = Fields()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image with its classes.

    Attributes:
      name: What the sample is called in messages.
      labels: Names of its classes; exactly one, unless images may have several. Where captions are
        taken in their place, its captions, at least one.
      image: The encoded image; None where only the labels are read.
      problem: Why the sample cannot be used; None if nothing was found.
    """

    name: str
    labels: tuple[str, ...] = ()
    image: bytes | None = None
    problem: str | None = None

    def require(self) -> None:
        """Raises DamagedImage if the sample cannot be used."""
        if self.problem is not None:
            raise DamagedImage(f"{self.name}: {self.problem}")


class SampleFile(Protocol):
    """A file whose samples are read one after the other.

    Attributes:
      path: The path of the file.
      fields: The fields of a sample that are taken.
      numbered: Names of the classes by their numbers; None takes what the file has.
    """

    @property
    def path(self) -> str: ...
    @property
    def fields(self) -> Fields: ...
    @property
    def numbered(self) -> tuple[str, ...] | None: ...

    def class_names(self) -> list[str] | None:
        """The names of the classes in their order, if the file declares them.

        Raises:
          UserError: if the file cannot be read, or does not say which field is which.
        """
        ...

    def several_labels(self) -> bool:
        """Whether the file is made for images with several labels or none."""
        ...

    def read(self, start: int = 0, *, images: bool = True) -> Iterator[Sample]:
        """The samples from number `start` on, with their images or, which is faster, without.

        Raises:
          UserError: if the file cannot be read. A file that is damaged from some place on gives a
            sample with a problem there, which is its last one.
        """
        ...


def labels_of(cell: Any, known: Sequence[str] | None, several: bool) -> tuple[tuple[str, ...], str]:
    """The names of the classes in a cell, and what is wrong with it, if anything.

    Args:
      cell: A name or number of a class, or a list of them.
      known: Names of the classes by their numbers; None takes the cell's text as the name.
      several: Whether there may be several labels, or none.
    """
    found = tables.labels_in(cell)
    if known is not None:
        unknown = [n for n in found if not n.isdecimal() or int(n) >= len(known)]
        if unknown == ["-1"]:  # Hugging Face's number of no label.
            unknown, found = [], []
        if unknown:
            return (), f"its label {some(unknown)} is no number of the {len(known)} classes"
        found = [known[int(number)] for number in found]
    if not several and len(found) != 1:
        return (), f"it has {len(found) or 'no'} label{'s' * (len(found) > 1)}"
    return tuple(found), ""


def captions_of(cell: Any) -> tuple[tuple[str, ...], str]:
    """The captions in a cell, a text or a list of texts, and what is wrong with it, if anything."""
    found = [cell] if isinstance(cell, str) else cell
    if not isinstance(found, list | tuple) or not found:
        return (), "it has no caption"
    if not all(isinstance(text, str) and text.strip() for text in found):
        return (), "it has a caption that is empty, or is no text"
    return tuple(text.strip() for text in found), ""


def the_one(path: str, what: str, found: Sequence[str], every: Sequence[str]) -> str:
    """The only candidate for a field.

    Raises:
      UserError: if there is none, or several; the message lists all fields.
    """
    if len(found) != 1:
        raise UserError(
            f"{path} has {f'several fields that could be the {what}' if found else f'no {what}'}: "
            f"{some(found or every, 20)}. Name it by --{what}-field"
        )
    return found[0]


def chosen_field(path: str, what: str, name: str, every: Sequence[str]) -> str:
    """The field of that name.

    Raises:
      UserError: if there is none.
    """
    return the_one(path, what, [field for field in every if field == name], every)

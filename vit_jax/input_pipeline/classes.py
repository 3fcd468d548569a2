"""The names of classes: their order, and how the classes of a dataset are found in a model."""

import collections
import re
import unicodedata
from collections.abc import Iterable, Sequence

from vit_jax.errors import UserError, some
from vit_jax.input_pipeline.records import Record, Source

_WHOLE_NUMBER = re.compile(r"[+-]?\d+")
_SHOWN = 10  # pairs or names in a message


def ordered(names: Iterable[str]) -> list[str]:
    """The distinct names in the order of their class numbers.

    Whole numbers are sorted by value (1, 2, 10), if all names are such; other names are sorted as
    text, by their code points. The order is the same for folders, tables and arrays. TFDS datasets
    keep the order of their builder.
    """
    distinct = set(names)
    if all(map(_WHOLE_NUMBER.fullmatch, distinct)):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def places(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """The place of each name in `known`; None for a name that is not in it, or is in it twice.

    Lists that are equal are matched one by one, even if a name is in them twice. An accented letter
    is the same whether it is one character, as most systems write it, or two, as in file names of
    macOS.
    """
    wanted, names = list(map(_normal, known)), list(map(_normal, names))
    if names == wanted:
        return list(range(len(names)))
    found: dict[str, int | None] = {}
    for place, name in enumerate(wanted):
        found[name] = None if name in found else place
    return [found.get(name) for name in names]


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def require_known(names: Iterable[str], known: Sequence[str], what: str, whose: object) -> None:
    """Raises UserError if a name is not in `known`.

    Args:
      names: Names of classes that occur in a dataset.
      known: Names of the classes to train on.
      what, whose: The dataset, and that to train on, for the message.
    """
    names = ordered(names)
    if strangers := [n for n, i in zip(names, places(names, known), strict=True) if i is None]:
        raise UserError(
            f"{what} has classes that {whose} lacks: {some(strangers, _SHOWN)}; classes to train "
            f"on: {some(known, _SHOWN)}"
        )


# --- a dataset meets a model ---------------------------------------------------------------------


def match(
    names: Sequence[str],
    outputs: Sequence[str] | int,
    *,
    dataset: str,
    model: str,
    by_position: bool = False,
    option: str = "--by-position",
) -> list[int]:
    """The output of the model that stands for each class of a dataset.

    A class is the output of the same name, wherever it stands; the model may know more classes. For
    ImageNet's classes, the WordNet id is a name too. A model that records no names is matched by
    position, if it has as many outputs as the dataset has classes.

    Args:
      names: Names of the dataset's classes, in their order.
      outputs: Names of the model's outputs, in their order; the number of them if the names are not
        known.
      dataset, model: What they are called in messages.
      by_position: Whether class i is output i, whatever the names are. If some of the model's
        classes are missing, their names must be the numbers of the outputs, from 0.
      option: What the user adds to set `by_position`, for messages.

    Raises:
      UserError: if a class has no output, or if the order of the classes is open to doubt.
    """
    count = outputs if isinstance(outputs, int) else len(outputs)
    if not by_position and not isinstance(outputs, int):
        best = _best(names, outputs)
        order = [place for place in best if place is not None]
        if len(order) == len(names):
            return order
        raise UserError(_strangers(names, outputs, best, dataset, model, option))
    if by_position and len(names) != count and _are_outputs(names, count):
        return [int(name) for name in names]
    if len(names) != count:
        raise UserError(
            f"{model} tells {count} classes apart, the dataset {dataset} has {len(names)}: "
            + (
                "classes can be matched by position only if there are as many, or if their names "
                "are the numbers of outputs, from 0"
                if by_position
                else "the names of the model's classes, which could match them, are not known"
            )
        )
    if not by_position and sorted(names) != list(names) == ordered(names):
        raise UserError(
            f"{model} does not record the names of its classes, and those of {dataset} are "
            f"numbers: here their order is {some(names)}, but libraries that sort them as text "
            f"have {some(sorted(names))}. If the model has the order of the numbers, add {option}"
        )
    return list(range(count))


def find(names: Sequence[str], outputs: Sequence[str], dataset: str) -> list[int | None]:
    """The output of the same name for each class of a dataset; None if no output has it.

    For ImageNet's classes, the WordNet id is a name too.

    Raises:
      UserError: for a name that means several outputs.
    """
    best = _best(names, outputs)
    known = {_normal(output) for spelling in _spellings(outputs) for output in spelling}
    if doubt := [n for n, i in zip(names, best, strict=True) if i is None and _normal(n) in known]:
        raise UserError(f"{dataset} has names that several classes have: {some(doubt, _SHOWN)}")
    return best


def require_distinct(names: Sequence[str], what: object) -> None:
    """Raises UserError if several classes of `what` have the same name."""
    counts = collections.Counter(map(_normal, names))
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"{what} has several classes of the same name: {some(repeated, _SHOWN)}")


def _best(names: Sequence[str], outputs: Sequence[str]) -> list[int | None]:
    """`places` in the spelling of the outputs in which most names are found."""
    found = [places(names, spelling) for spelling in _spellings(outputs)]
    return min(found, key=lambda one: one.count(None))


def _are_outputs(names: Iterable[str], count: int) -> bool:
    """Whether all names are numbers of outputs, from 0."""
    return all(name.isdecimal() and int(name) < count for name in names)


def _spellings(outputs: Sequence[str]) -> list[list[str]]:
    """The names of a model's outputs, and the other names of the same ImageNet classes."""
    from vit_jax.class_names import class_names, wordnet_ids

    known = [class_names(len(outputs)), wordnet_ids(len(outputs))]
    lists = [names for names in known if names is not None]
    is_imagenet = any(_almost_equal(outputs, names) for names in lists)
    return [list(outputs), *(lists if is_imagenet else [])]


def _almost_equal(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether nine of ten names are the same: libraries spell some of ImageNet's otherwise."""
    same = sum(one == other for one, other in zip(names, others, strict=True))
    return 10 * same >= 9 * len(others)


def _strangers(
    names: Sequence[str],
    outputs: Sequence[str],
    found: Sequence[int | None],
    dataset: str,
    model: str,
    option: str,
) -> str:
    strangers = [name for name, place in zip(names, found, strict=True) if place is None]
    message = (
        f"{dataset} has {len(strangers)} of {len(names)} classes that {model} does not know by "
        f"name, or knows twice: {some(strangers, _SHOWN)}. "
    )
    if len(names) != len(outputs):
        return message + f"The model's {len(outputs)} classes are {some(outputs, _SHOWN)}"
    pairs = [f"{name} = {output}" for name, output in zip(names, outputs, strict=True)]
    return (
        f"{message}By position the pairs would be {some(pairs, _SHOWN)}. If they are right, add "
        f"{option}; otherwise name the dataset's classes as the model does"
    )


class Relabelled:
    """The records of a source with the class numbers of a model.

    Args:
      source: Source whose class i is output `order[i]` of the model.
      order: As `match` returns it.
      outputs: As for `match`.
    """

    def __init__(self, source: Source, order: Sequence[int], outputs: Sequence[str] | int):
        self._source, self._order = source, list(order)
        if isinstance(outputs, int):
            outputs = [source.int2str(label) for label in range(outputs)]
        self._names = list(outputs)
        self.num_classes, self.description = len(outputs), source.description

    def int2str(self, label: int) -> str:
        """The model's name of class number `label`, or the dataset's if the model knows none."""
        return self._names[label]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        label = record["label"]
        if isinstance(label, list):
            return {**record, "label": [self._order[one] for one in label]}
        return {**record, "label": self._order[label]}


def names_of(source: Source) -> list[str]:
    """The names of a source's classes, in their order."""
    return [source.int2str(label) for label in range(source.num_classes)]

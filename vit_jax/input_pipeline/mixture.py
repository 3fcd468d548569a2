"""Several datasets to train on at once, as `config.mixture` lists them.

The classes of a run are those of `config.dataset`, whose test split is evaluated. A class of a
dataset in the mixture is the class of the same name, wherever it stands, or the one that `classes`
of its entry maps it to; every class has a place. `config.mixture_classes` says what is done about
names that `config.dataset` lacks: 'same' refuses them, and refuses classes that no dataset of the
mixture has; 'union' adds them behind the others, dataset by dataset, in the dataset's order. The
datasets are in the order of the names of their entries, which is the order of a ConfigDict.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.errors import UserError, some, suggest
from vit_jax.input_pipeline import classes
from vit_jax.input_pipeline.order import Part
from vit_jax.input_pipeline.records import Record, Source, has_several_labels
from vit_jax.input_pipeline.sources import open_source
from vit_jax.ranges import above

_SHOWN = 10  # names in a message
_JOINS = ("same", "union")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One dataset of `config.mixture`.

    Attributes:
      name: The name of the entry, for messages.
      dataset: Whatever `open_source` reads.
      weight: The share of the dataset's examples, relative to the weights of the other entries.
      split: The split to train on; None is `config.pp.train`.
      data_dir: The folder of prepared TFDS datasets; None is `config.tfds_data_dir`.
      classes: Pairs (name of a class in this dataset, name of the class of the run).
    """

    name: str
    dataset: str
    weight: float = 1.0
    split: str | None = None
    data_dir: str | None = None
    classes: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"config.mixture.{self.name} ({self.dataset})"


def entries(config: Any) -> list[Entry]:
    """The entries of `config.mixture`.

    Raises:
      UserError: for an entry that is none, and for an unknown `config.mixture_classes`.
    """
    if config.mixture_classes not in _JOINS:
        raise UserError(
            f"config.mixture_classes must be {' or '.join(map(repr, _JOINS))}, got "
            f"{config.mixture_classes!r}"
        )
    return [_entry(name, fields) for name, fields in sorted(config.mixture.items())]


def _entry(name: str, fields: Any) -> Entry:
    where = f"config.mixture.{name}"
    if not hasattr(fields, "items"):
        raise UserError(f"{where} must be a dict such as {{'dataset': …, 'weight': 1.0}}")
    fields = {key: value for key, value in fields.items() if value is not None}
    known = [field.name for field in dataclasses.fields(Entry) if field.name != "name"]
    for key in fields:
        if key not in known:
            raise UserError(
                f"{where} has no field {key!r}.{suggest(key, known)} Known: {', '.join(known)}"
            )
    if not fields.get("dataset"):
        raise UserError(f"{where}.dataset is not set")
    above(0).require(f"{where}.weight", fields.get("weight", 1.0))
    for key in ("dataset", "split", "data_dir"):
        if not isinstance(fields.get(key, ""), str):
            raise UserError(f"{where}.{key} must be a text, got {fields[key]!r}")
    pairs = fields.get("classes", ())
    if not isinstance(pairs, list | tuple) or not all(map(_is_pair, pairs)):
        raise UserError(
            f"{where}.classes must be pairs (name of a class there, name of the run's class), got "
            f"{pairs!r}"
        )
    return Entry(name, **{**fields, "classes": tuple(map(tuple, pairs))})


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(isinstance(name, str) for name in value)


def open_mixture(config: Any, class_names: Sequence[str]) -> "Mixture":
    """The datasets of a complete config's mixture, with the class numbers of the run.

    Args:
      config: The config; `config.mixture` has at least one entry.
      class_names: The classes of `config.dataset`, in their order.

    Raises:
      UserError: if a dataset cannot be opened, or its classes do not fit.
    """
    listed = entries(config)
    sources = [
        open_source(
            entry.dataset,
            entry.split or config.pp.train,
            data_dir=entry.data_dir or config.tfds_data_dir,
            manual_dir=config.tfds_manual_dir,
        )
        for entry in listed
    ]
    named = [_mapped(entry, source) for entry, source in zip(listed, sources, strict=True)]
    join = _union if config.mixture_classes == "union" else _same
    outputs, orders = join(config.dataset, class_names, dict(zip(listed, named, strict=True)))
    relabelled = [
        classes.Relabelled(source, order, outputs)
        for source, order in zip(sources, orders, strict=True)
    ]
    return Mixture(listed, relabelled, outputs)


def _mapped(entry: Entry, source: Source) -> list[str]:
    """The names of a dataset's classes after the entry's mapping."""
    names, mapping = classes.names_of(source), dict(entry.classes)
    classes.require_distinct(names, entry)
    if len(mapping) != len(entry.classes):
        raise UserError(f"config.mixture.{entry.name}.classes names a class twice")
    for name in mapping:
        if name not in names:
            raise UserError(
                f"{entry} has no class {name!r}, which its `classes` maps.{suggest(name, names)} "
                f"Its classes: {some(names, _SHOWN)}"
            )
    return [mapping.get(name, name) for name in names]


# --- the classes of the run ----------------------------------------------------------------------

Joined = tuple[list[str], list[list[int]]]  # the run's classes; each dataset's numbers among them


def _same(dataset: str, known: Sequence[str], named: Mapping[Entry, list[str]]) -> Joined:
    """The classes of `dataset`, which those of the mixture must be."""
    orders = []
    for entry, names in named.items():
        option = f"them to config.mixture.{entry.name}.classes"
        try:
            order = classes.match(names, known, dataset=str(entry), model=dataset, option=option)
        except UserError as error:
            raise UserError(
                f"{error}. config.mixture.{entry.name}.classes maps names, and "
                "config.mixture_classes='union' adds new ones"
            ) from error
        orders.append(order)
    if missing := sorted(set(range(len(known))) - {number for order in orders for number in order}):
        raise UserError(
            f"{dataset} has {len(missing)} of {len(known)} classes that no dataset of "
            f"config.mixture has: {some([known[i] for i in missing], _SHOWN)}. If no image of "
            "theirs is to be trained on, set config.mixture_classes='union'"
        )
    return list(known), orders


def _union(dataset: str, known: Sequence[str], named: Mapping[Entry, list[str]]) -> Joined:
    """The classes of `dataset`, and behind them those that the mixture adds."""
    outputs, orders = list(known), []
    classes.require_distinct(known, dataset)
    for entry, names in named.items():
        found = classes.find(names, outputs, str(entry))
        new = [name for name, place in zip(names, found, strict=True) if place is None]
        outputs += dict.fromkeys(new)
        added = {name: outputs.index(name) for name in new}
        orders.append(
            [added[name] if i is None else i for name, i in zip(names, found, strict=True)]
        )
    classes.require_distinct(outputs, "config.mixture")
    return outputs, orders


# --- records -------------------------------------------------------------------------------------


class Mixture:
    """The records of several sources, one source after the other.

    `parts` has the number of records and the weight of each source, with which
    `input_pipeline.order` mixes them. Where an image is damaged and skipped, the next record takes
    its place, which after the last record of a source is the first of the next source.

    Args:
      listed: The entries.
      sources: The source of each entry; all have the classes of the run.
      class_names: Those classes.
    """

    def __init__(
        self, listed: Sequence[Entry], sources: Sequence[Source], class_names: Sequence[str]
    ):
        self._sources, self._names = list(sources), list(class_names)
        self.num_classes = len(class_names)
        self.parts = tuple(
            Part(len(source), entry.weight) for entry, source in zip(listed, sources, strict=True)
        )
        self._starts = [0, *itertools.accumulate(part.count for part in self.parts)]
        self._several_labels = any(map(has_several_labels, sources))
        total = sum(entry.weight for entry in listed)
        shares = [
            f"{100 * entry.weight / total:.4g} % of {entry.name} "
            f"({source.description}, {len(source)} images)"
            for entry, source in zip(listed, sources, strict=True)
        ]
        self.description = f"a mixture of {', '.join(shares)}"

    def int2str(self, label: int) -> str:
        """The run's name of class number `label`."""
        return self._names[label]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        number = bisect.bisect(self._starts, index) - 1
        record = self._sources[number][index - self._starts[number]]
        if self._several_labels and not isinstance(record["label"], list):
            return {**record, "label": [record["label"]]}
        return record

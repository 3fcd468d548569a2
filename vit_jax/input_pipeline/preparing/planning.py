"""What is known of a dataset before its images are read: classes, and numbers of samples."""

import dataclasses
import itertools
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import classes
from vit_jax.input_pipeline.examples import OnError
from vit_jax.input_pipeline.preparing import descriptions
from vit_jax.input_pipeline.preparing.samples import SampleFile
from vit_jax.waiting import waiting

PLAN = "plan.json"

Splits = Mapping[str, list[SampleFile]]


@dataclasses.dataclass
class Plan:
    """What is known before the images are read.

    Attributes:
      inputs: For each split what `stamp` says of its files.
      class_names: The names of the classes, in their order.
      several_labels: Whether a sample may have several labels, or none.
      samples: The number of samples of each split, damaged ones included.
      captions: Whether samples have captions, and no labels.
    """

    inputs: dict[str, list[list[Any]]]
    class_names: list[str]
    several_labels: bool
    samples: dict[str, int]
    captions: bool = False


def planned(folder: str, splits: Splits, inputs: dict[str, Any], on_error: OnError) -> Plan:
    """The plan in the folder of an earlier start, or a new one.

    Args:
      folder: Where the dataset is written until it is whole.
      splits: The files of each split.
      inputs: What `stamp` says of them.
      on_error: Treatment of samples without a label, see `writing.prepare`.

    Raises:
      UserError: for labels that do not fit each other, and for a plan of other files.
    """
    place = os.path.join(folder, PLAN)
    if os.path.exists(place):
        plan = descriptions.load(Plan, place)
        if plan.inputs != inputs:
            raise UserError(
                f"{folder} holds an unfinished dataset of other files, or fields: name those to go "
                "on with it, or delete it to begin anew"
            )
        return plan
    files = [file for of_split in splits.values() for file in of_split]
    captions = any(file.fields.captions for file in files)
    what = "captions" if captions else "labels"
    with waiting(f"reading the {what} of {len(files)} files"):
        if captions:
            plan = Plan(inputs, [], False, _counts(splits, on_error), captions=True)
        else:
            plan = Plan(inputs, *_labels(splits, on_error))
    os.makedirs(folder, exist_ok=True)
    descriptions.save(place, vars(plan))
    return plan


def _labels(splits: Splits, on_error: OnError) -> tuple[list[str], bool, dict[str, int]]:
    """The names of the classes, whether a sample may have several, and the number of samples."""
    files = [file for of_split in splits.values() for file in of_split]
    known = _declared(files)
    several = any(file.several_labels() for file in files)
    found: dict[str, set[str]] = {split: set() for split in splits}
    counts = dict.fromkeys(splits, 0)
    for split, of_split in splits.items():
        for sample in itertools.chain.from_iterable(f.read(images=False) for f in of_split):
            counts[split] += 1
            if sample.problem is None:
                found[split].update(sample.labels)
                several |= len(sample.labels) != 1
            elif on_error == "raise":
                sample.require()
    if known is None:
        known = classes.ordered(found.get("train") or set().union(*found.values()))
    for split, names in found.items():
        classes.require_known(names, known, f"the split {split}", "the split train")
    classes.require_distinct(known, "the dataset")
    if bad := [name for name in known if not name.strip() or len(name.splitlines()) > 1]:
        raise UserError(f"names of classes must be one line of text each, got {bad[:3]}")
    if not known:
        raise UserError("no sample has a label")
    return known, several, counts


def _counts(splits: Splits, on_error: OnError) -> dict[str, int]:
    """The number of samples of each split."""
    counts = dict.fromkeys(splits, 0)
    for split, of_split in splits.items():
        for sample in itertools.chain.from_iterable(f.read(images=False) for f in of_split):
            counts[split] += 1
            if on_error == "raise":
                sample.require()
    return counts


def _declared(files: Iterable[SampleFile]) -> list[str] | None:
    """The classes that the files declare, which must be the same in all of them."""
    known, first = None, ""
    for number, file in enumerate(files):
        names = file.class_names()
        if number and names != known:
            raise UserError(
                f"{first} and {file.path} declare other classes: {some(known or ['none'], 10)}, "
                f"and {some(names or ['none'], 10)}"
            )
        known, first = names, first or file.path
    return known


def features_of(plan: Plan) -> Any:
    """The features that TensorFlow Datasets knows the examples by."""
    import tensorflow_datasets as tfds

    if plan.captions:
        told = {"captions": tfds.features.Sequence(tfds.features.Text())}
    else:
        label = tfds.features.ClassLabel(names=plan.class_names)
        told = {"label": tfds.features.Sequence(label) if plan.several_labels else label}
    return tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), **told, "file_name": tfds.features.Text()}
    )


def stamp(file: SampleFile) -> list[Any]:
    """What tells a file, and the way in which it is read, from another one."""
    try:
        size = os.path.getsize(file.path)
    except OSError as error:
        raise UserError(f"cannot read {file.path}: {error.strerror}") from error
    names = "\n".join(file.numbered or ()).encode()
    return [
        os.path.abspath(file.path),
        size,
        file.fields.image,
        file.fields.label,
        zlib.crc32(names),
        *(["captions"] if file.fields.captions else []),
    ]

"""What a probe learns from and is tested on, and its figure: the same for runs and commands."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluate import features, fewshot
from vit_jax.evaluate.embeddings.table import Embeddings
from vit_jax.evaluate.fewshot import Examples
from vit_jax.input_pipeline import classes, sources
from vit_jax.input_pipeline.records import Source

Path = str | os.PathLike[str]


def open_splits(
    dataset: str,
    train_split: str,
    test_split: str,
    *,
    by_position: bool = False,
    option: str = "--by-position",
    shots: int = 0,
    seed: int = 0,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> tuple[Source, Source]:
    """What to learn from, and what to test on with the same class numbers.

    Args:
      dataset, data_dir, manual_dir: As for `sources.open_source`.
      train_split, test_split: Splits of the dataset.
      by_position, option: As for `classes.match`.
      shots: Examples of each class to learn from, drawn by `seed`; 0 for all.
      seed: See `shots`.

    Raises:
      UserError: as `open_source`; for classes that differ between the splits; for examples with
        several labels, if shots are drawn.
    """
    to_learn, to_test = (
        sources.open_source(dataset, split, data_dir=data_dir, manual_dir=manual_dir)
        for split in (train_split, test_split)
    )
    names = classes.names_of(to_learn)
    order = classes.match(
        classes.names_of(to_test),
        names,
        dataset=to_test.description,
        model=to_learn.description,
        by_position=by_position,
        option=option,
    )
    to_test = classes.Relabelled(to_test, order, names)
    return (features.draw_shots(to_learn, shots, seed) if shots else to_learn), to_test


def open_embeddings(
    train: Path,
    test: Path,
    what: str = "features",
    *,
    by_position: bool = False,
    shots: int = 0,
    seed: int = 0,
) -> tuple[Examples, Examples, list[str]]:
    """What to learn from and what to test on, of embeddings that were written before.

    Args:
      train, test: Folders, or addresses of such.
      what: The kind of vectors.
      by_position, shots, seed: As for `open_splits`.

    Returns:
      The examples, with the class numbers of `train`; and what is to be said of them: folders that
      are not finished, and data that is the same.

    Raises:
      UserError: for folders without embeddings, or of other models; for data without labels or with
        several; for vectors of every token; and for classes that differ.
    """
    to_learn, to_test = (Embeddings.open(place) for place in (train, test))
    notes = [one.missing for one in (to_learn, to_test) if one.missing]
    if to_learn.manifest.data["digest"] == to_test.manifest.data["digest"]:
        notes.append(f"{train} and {test} are of the same data: what is tested was learnt")
    _require_one_model(to_learn, to_test)
    names = to_learn.class_names
    order = classes.match(
        to_test.class_names, names, dataset=str(test), model=str(train), by_position=by_position
    )
    learnt, tested = _examples(to_learn, what), _examples(to_test, what)
    if shots:
        labels = learnt.labels.tolist()
        rows = features.drawn(labels.__getitem__, len(labels), len(names), shots, seed)
        learnt = learnt[np.array(rows)]
    labels = np.array(order)[tested.labels]
    return learnt, Examples(tested.features, labels, learnt.num_classes), notes


def _require_one_model(one: Embeddings, other: Embeddings) -> None:
    models = [
        {name: x.manifest.model[name] for name in ("weights", "preprocess")} for x in (one, other)
    ]
    if models[0] != models[1]:
        raise UserError(
            f"{one.folder.place} is of {one.manifest.model['path']}, and {other.folder.place} of "
            f"{other.manifest.model['path']}, which is another model, or prepares images otherwise"
        )


def _examples(embeddings: Embeddings, what: str) -> Examples:
    place, manifest = embeddings.folder.place, embeddings.manifest
    if manifest.data["labels"] != "one":
        raise UserError(
            f"{place}: a probe needs exactly one label for each image, and this data came with "
            f"{manifest.data['labels']}. Embed a folder of classes, a table with labels, or a "
            "dataset"
        )
    rows = embeddings.read(what)
    vectors = rows.vectors[what]
    if vectors.ndim != 2:
        raise UserError(
            f"{place}: {what} are {list(vectors.shape[1:])} numbers for each image; a "
            "probe takes one vector each, such as features"
        )
    return Examples(vectors.astype(np.float32), np.array(rows.labels), len(embeddings.class_names))


def figures(
    kind: str, train: Examples, test: Examples, settings: Mapping[str, Any]
) -> dict[str, float]:
    """The accuracy of a probe, 'top1', 0 to 1; and what it chose, the penalty 'l2' of 'fewshot'.

    Args:
      kind: 'fewshot' or 'knn'.
      train, test: What it learns from, and what it is tested on.
      settings: 'l2', strengths of the penalty, for 'fewshot'; 'k' and 'temperature' for 'knn'.

    Raises:
      UserError: as `fewshot.linear_probe` and `fewshot.knn`.
    """
    if kind == "knn":
        return {"top1": fewshot.knn(train, test, settings["k"], settings["temperature"])}
    return fewshot.linear_probe(train, test, settings["l2"] or fewshot.L2S)

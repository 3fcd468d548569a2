"""A part of the training images that is kept for validation where there is no test split."""

from collections.abc import Sequence

import numpy as np

from vit_jax.input_pipeline.records import LabelledSource, Subset

SHARE = 10  # One image of so many is held out.
_SEED = 0


def held_out(source: LabelledSource, *, train: bool) -> Subset:
    """The part of a source that is held out for validation, or with `train` the rest of it.

    Of every class a tenth of the images is held out, at least one if the class has two or more.
    They are chosen at random by a fixed seed, so that training and every later evaluation of the
    same files agree. Where images have several labels, it is a tenth of all images.
    """
    rows = chosen(source.labels)
    rest = np.setdiff1d(np.arange(len(source)), rows)
    part = f"the tenth of each class that seed {_SEED} holds out"
    description = f"{source.description}, {'without ' if train else ''}{part}"
    return Subset(source, (rest if train else rows).tolist(), description)


def chosen(labels: Sequence[int] | Sequence[list[int]]) -> np.ndarray:
    """The sorted numbers of the rows that are held out, given the label or labels of each row."""
    several = any(isinstance(label, list) for label in labels)
    strata = np.zeros(len(labels), int) if several else np.asarray(labels)
    rng = np.random.Generator(np.random.PCG64(_SEED))
    picked = []
    for label in np.unique(strata):
        rows = np.flatnonzero(strata == label)
        count = max(1, round(len(rows) / SHARE)) if len(rows) > 1 else 0
        picked.append(rng.permutation(rows)[:count])
    return np.sort(np.concatenate(picked))

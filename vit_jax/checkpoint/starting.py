"""What a fine-tuned model begins with: a file of its own family, or of one that it goes on from.

A masked autoencoder is such a one: its decoder is left behind, by name, and said so. Which families
these are, and what becomes of their tensors, are facts of the family that goes on
(`Family.starts_from`); which part of a model goes on is `Family.parts`.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import names, recognise
from vit_jax.checkpoint.source import Source, open_source, read_all
from vit_jax.families.family import Config, Edit, Size, Start
from vit_jax.families.registry import family_of, get
from vit_jax.families.rules import listed

log = logging.getLogger(__name__)


def tensors_for(
    path: str | os.PathLike[str], config: Config, init: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, np.ndarray], Size | None]:
    """The file's tensors as the model's family has them, and the image size that they are for.

    The file may be of another size than the model. What is left behind is logged.

    Args:
      path: Whatever `open_source` reads.
      config: Constructor fields of the model.
      init: Its fresh tensors by our names, of which it keeps what no file has.

    Raises:
      UserError: for a file that is neither of the model's family nor of one that it goes on from.
    """
    with open_source(path) as source:
        found = source.facts.config
        if found is not None and get(found) is get(config) and recognise.heads_known(found):
            return read_all(source), source.facts.image_size
        goes_on = _going_on(source, config)
    if goes_on is None:
        # What the file leaves open is as the model has it.
        with open_source(path, config) as source:
            return read_all(source), source.facts.image_size
    whole, branch, start = goes_on
    with open_source(path, whole) as source:
        flat, size = read_all(source), source.facts.image_size
    if branch:
        below = f"{branch}/"
        left = sorted({n.split("/")[0] for n in flat if not n.startswith(below)})
        log.warning("%s: its %s goes on; left behind: %s", path, branch, listed(left))
        flat = {n.removeprefix(below): x for n, x in flat.items() if n.startswith(below)}
    if edit := _edit(start, flat, init):
        log.warning("%s: %s", path, edit.step)
        flat = names.applied(edit, flat)
    return flat, size


def _going_on(source: Source, config: Config) -> tuple[Config, str, Start] | None:
    """The config of the file's model, its part that goes on ('' for all of it), and how."""
    starts = {family_of(config): Start(), **get(config).starts_from(config)}
    for whole in _models(source):
        if (start := starts.get(family_of(whole))) and get(whole) is not get(config):
            return whole, "", start
        for branch, part in get(whole).parts(whole).items():
            if start := starts.get(family_of(part)):
                return whole, branch, start
    return None


def _models(source: Source) -> Iterator[dict[str, Any]]:
    """The model that the file holds, or all that it may be of."""
    if source.facts.config is not None and recognise.heads_known(source.facts.config):
        yield source.facts.config
    yield from (candidate.config for candidate in source.facts.candidates)


def _edit(start: Start, flat: Mapping[str, Any], init: Mapping[str, np.ndarray]) -> Edit | None:
    """What becomes of the tensors of a family that a model goes on from; None for nothing."""
    left = tuple(n for n in flat if any(re.fullmatch(p, n) for p in start.left))
    fresh = {n: x for n, x in init.items() if any(re.fullmatch(p, n) for p in start.fresh)}
    if not left and not fresh:
        return None
    words = [f"left behind: {listed(sorted(left))}"] if left else []
    words += [f"the model's own, fresh: {listed(sorted(fresh))}"] if fresh else []
    return Edit("; ".join(words), dropped=left, added={n: lambda x=x: x for n, x in fresh.items()})

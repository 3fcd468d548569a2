"""Which models have tensors of these names: an index, so that recognising a file builds no model.

The fingerprint of a set of names is what is left when every number in it is replaced: it does not
depend on a model's depth. `fingerprints.json` holds those of every family in every layout, with its
head and without; `python -m vit_jax.families.generate` writes it.
"""

import functools
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from vit_jax.families.family import RGB, Config, Family, Shapes, is_head
from vit_jax.families.registry import families

FILE = pathlib.Path(__file__).with_name("fingerprints.json")
LINEN = "linen"


class Entry(NamedTuple):
    """Models with one fingerprint.

    Attributes:
      family: A name of `families()`.
      layout: Whose names they are; 'linen' for our own.
      models: Registered names of the family with these names of tensors.
    """

    family: str
    layout: str
    models: tuple[str, ...]


def fingerprint(names: Iterable[str]) -> str:
    """A short text that is equal for names that differ in their numbers only.

    Names that carry no information in any layout are left out.
    """
    kept = {alike for name in names if (alike := _without_numbers(name)) is not None}
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16]


@functools.lru_cache(2**14)  # a file's names are asked for again by every family
def _without_numbers(name: str) -> str | None:
    """What names that differ in their numbers share; None for one that carries no information."""
    return None if _ignored().fullmatch(name) else re.sub(r"\d+", "#", name)


@functools.cache
def _ignored() -> re.Pattern[str]:
    layouts = (layout for family in families().values() for layout in family.layouts.values())
    patterns = {pattern for layout in layouts for pattern in layout.ignore}
    return re.compile("|".join(f"(?:{p})" for p in sorted({r".*num_batches_tracked", *patterns})))


def body(family: Family, config: Config, shapes: Shapes) -> int:
    """Numbers in tensors (our names) that depend neither on the head nor on the image size.

    What reads the pixels is counted as that of RGB images.
    """
    at = (224, 224)  # which tensors are resized does not depend on it
    resized = set(family.resize(config, at, at, "timm")) if family.resize is not None else set()
    kept = {n: s for n, s in shapes.items() if not is_head(n) and n not in resized}
    stem = [(kept[n], kept[n][-2]) for n in family.stem(config) if n in kept]
    stem += [(kept[n], kept[n][-1]) for n in family.stem_norms(config) if n in kept]
    more = sum(math.prod(shape) * (channels - RGB) // channels for shape, channels in stem)
    return sum(map(math.prod, kept.values())) - more


@functools.cache
def index() -> dict[str, tuple[Entry, ...]]:
    """Fingerprint -> the models that have it, in the order of registration."""
    found: dict[str, list[Entry]] = {}
    for key, family, layout, *models in json.loads(FILE.read_text()):
        found.setdefault(key, []).append(Entry(family, layout, tuple(models)))
    return {key: tuple(entries) for key, entries in found.items()}

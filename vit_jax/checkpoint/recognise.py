"""Which models a file's tensors can be of, and how they become ours.

Models are found by a fingerprint of the names, see `families.fingerprints`; their shapes are
checked afterwards. Nothing is guessed here: all that fit are returned.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import names
from vit_jax.checkpoint.files.archive import Renamed
from vit_jax.checkpoint.names import LINEN, OFFICIAL, Tensors
from vit_jax.errors import UserError
from vit_jax.families import fingerprints, released, sizes
from vit_jax.families.family import Config, Shapes, Size
from vit_jax.families.fingerprints import fingerprint
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import comparable, families, family_of, get, registered
from vit_jax.families.rules import names_differ

# What tensors with the right names and shapes of too few axes, or of contradicting sizes, raise.
_NOT_THESE_SHAPES = (UserError, KeyError, IndexError, ValueError, ZeroDivisionError)
# Where the image size is not known, and decides only how many positions are computed.
_ANY_SIZE = (224, 224)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that the tensors of a file can be of.

    Attributes:
      name: Registered; None for a size that nobody registered.
      config: Constructor fields; `num_heads` is None where nothing tells it.
      layout: Whose names the file has: a layout of the family, 'linen' or 'official'.
      shapes: Shapes of the tensors by our names.
    """

    name: str | None
    config: dict[str, Any]
    layout: str
    shapes: Shapes

    @property
    def preprocess(self) -> Preprocess:
        """How the registered model wants its images; the official way for others."""
        return registered()[self.name].preprocess if self.name else Preprocess()

    @property
    def image_size(self) -> Size | None:
        """(height, width) in pixels that the tensors are for, as far as they tell."""
        return names.image_size_of(self.config, self.shapes)

    @property
    def numerics(self) -> tuple[Any, ...]:
        """What decides the numbers that come out for the same tensors and the same picture."""
        images = dataclasses.replace(self.preprocess, size=0)
        return get(self.config).numerics(self.config), images

    def described(self) -> str:
        """What tells it from the other candidates, in words."""
        family, images = get(self.config), self.preprocess
        mean = " ".join(f"{x:.4g}" for x in images.mean)
        computes = f"{family.title}, {family.numerics(self.config)}"
        if "images" not in family.inputs:
            return computes
        return (
            f"{computes}; images: {images.resize}, {images.method}, crop "
            f"{images.crop:.4g}, mean {mean}"
        )


def heads_known(config: Config) -> bool:
    """Whether the number of attention heads is known, or the model has none to tell."""
    transformer = config.get("transformer")
    return transformer is None or transformer["num_heads"] is not None


def with_heads(config: Config, num_heads: int | None) -> dict[str, Any]:
    """The config with another number of attention heads."""
    return {**config, "transformer": {**config["transformer"], "num_heads": num_heads}}


def read(
    theirs: Tensors, config: Config, layout: str, image_size: Size | None
) -> tuple[Tensors, tuple[str, ...]]:
    """A file's tensors under our names, lazily, and what is done beyond renaming, in words.

    Args:
      theirs: By the file's names.
      config: Constructor fields; where the number of heads is None, only shapes can be asked for.
      layout: Whose names they are.
      image_size: (height, width) in pixels, for files whose positions are computed.
    """
    config = config if heads_known(config) else with_heads(config, 1)
    spelled = Renamed(theirs, names.respelled(theirs, config, layout))
    before = names.before_reading(spelled, config, layout)
    ours = names.imported(spelled, config, layout)
    ours, steps = names.completed(ours, config, layout, image_size or _ANY_SIZE)
    return ours, steps if before is None else (before.step, *steps)


def is_known(shapes: Shapes) -> bool:
    """Whether some family has tensors of these names, in one of its layouts."""
    return next(_entries(shapes), None) is not None


def of_tensors(
    shapes: Shapes, size: Size | None = None, *, family: str | None = None
) -> list[Candidate]:
    """Every model that has tensors of these names and shapes, in the order of registration.

    Args:
      shapes: Shapes by the file's names, without a trainer's prefixes.
      size: (height, width) in pixels that the file says it is for; None where it says nothing.
      family: The only family to look at.
    """
    found = []
    for entry in _entries(shapes, family):
        found += _registered(entry, shapes, size)
    return _at_own_size(_known_first(found), size)


def _known_first(found: list[Candidate]) -> list[Candidate]:
    """Without those of no name where a model of a name computes the same from the same tensors.

    Families overlap: a tower of one is a model of any size of another, which nothing is known of.
    """
    known = {get(c.config).numerics(c.config) for c in found if c.name}
    return [c for c in found if c.name or get(c.config).numerics(c.config) not in known]


def of_model(config: Config, shapes: Shapes) -> Candidate:
    """The file as one of this model.

    Raises:
      UserError: that says where names or shapes differ, if the tensors are not this model's.
    """
    family, own = get(config), family_of(config)
    entries = list(_entries(shapes, own))
    layout = entries[0].layout if entries else _matching_layout(shapes, config)
    if family.infer is not None:
        for entry in entries:
            inferred, _ = _inferred(entry, shapes)
            fitted = family.fit(config, inferred) if inferred and family.fit else None
            if fitted is not None:
                return _candidate(_name(fitted, {}), fitted, entry.layout, shapes)
            layout = entry.layout
    ours = _shapes(read(_dummies(shapes), config, layout, None)[0])
    names.check(config, ours)
    return Candidate(_name(config, ours), names.with_channels(config, ours), layout, ours)


def _candidate(name: str | None, config: Config, layout: str, shapes: Shapes) -> Candidate:
    """A candidate from the shapes by the file's names."""
    ours = _shapes(read(_dummies(shapes), config, layout, None)[0])
    return Candidate(name, names.with_channels(config, ours), layout, ours)


def _name(config: Config, ours: Shapes) -> str | None:
    """The registered model of these fields; of several, that of the image size of the tensors."""
    name = config.get("model_name")
    fitting = names.fitting_models(config)
    if name in fitting or len(fitting) < 2 or not ours:
        return name if name in fitting else next(iter(fitting), None)
    found = [Candidate(known, dict(config), LINEN, ours) for known in fitting]
    return _closest_size(found, None).name


def _entries(shapes: Shapes, family: str | None = None) -> Iterator[fingerprints.Entry]:
    """The families and layouts whose names these are; of one family alone, no other is tried."""
    asked = {name: its for name, its in families().items() if family in (None, name)}
    index, seen = fingerprints.index(), set()

    def found(spelled: Iterable[str], layout: str | None, of: Collection[str] = asked):
        for entry in index.get(fingerprint(spelled), ()):
            is_ours = entry.layout == LINEN
            fits = is_ours == (layout is not None) and entry.family in of
            entry = entry._replace(layout=layout or entry.layout)
            key = (entry.family, LINEN if is_ours else entry.layout)
            if fits and key not in seen:
                seen.add(key)
                yield entry

    yield from found(_our_names(shapes), LINEN)
    # A fingerprint takes numbers for equal: one of the names that differ in them stands for all.
    one_of_each = list({re.sub(r"\d+", "#", name): name for name in shapes}.values())
    for name, its in asked.items():
        for layout, known in its.layouts.items():
            if known.respell is not None:
                spelled = known.respell(one_of_each)
                for entry in index.get(fingerprint(spelled), ()):
                    if entry[:2] == (name, layout) and (name, layout) not in seen:
                        seen.add((name, layout))
                        yield entry
            elif known.reading is not None and layout != OFFICIAL:
                yield from found(_completed_names(shapes, name, layout), layout, [name])
    yield from found(shapes, None)


def _our_names(shapes: Shapes) -> list[str]:
    """Our names in a file that the original code or ours wrote; [] for one that mixes spellings."""
    if released.clash(shapes):
        return []
    return [r.ours[0] for r in released.reading(shapes)]


def _completed_names(shapes: Shapes, family: str, layout: str) -> list[str]:
    """Our names in a file of a layout that leaves some tensors out; [] if it is none."""
    config = {"family": family}
    known = families()[family].layouts[layout]
    assert known.reading is not None
    if released.clash(shapes) or len({r.ours for r in known.reading(shapes)}) != len(shapes):
        return []
    if not known.complete(shapes):
        return []
    ours = names.imported(_dummies(shapes), config, layout)
    return list(names.completed(ours, config, layout, _ANY_SIZE)[0])


def _registered(
    entry: fingerprints.Entry, shapes: Shapes, size: Size | None
) -> Iterator[Candidate]:
    """The models of an entry that have these shapes, those of no registered size too."""
    family = families()[entry.family]
    if family.infer is not None and family.fit is not None:
        inferred, ours = _inferred(entry, shapes)
        if inferred is None or _is_doubtful(inferred, entry.layout, ours, size):
            return
        own = family.architectures.items()
        fitted = [
            (name, config)
            for name, known in own
            if known.alias_of is None and (config := family.fit(known.config, inferred))
        ]
        for name, config in fitted or [(None, inferred)]:
            yield _candidate(name, config, entry.layout, shapes)
        return
    for name in entry.models:
        config = registered()[name].config.to_dict()
        ours = _shapes_if_read(config, entry.layout, shapes)
        # Counted first: the shapes of a model that has another number of parameters are not needed.
        if ours is None or fingerprints.body(family, config, ours) != sizes.recorded()[name].body:
            continue
        if _fits(config, ours) and not _is_doubtful(config, entry.layout, ours, size):
            yield Candidate(name, names.with_channels(config, ours), entry.layout, ours)


def _inferred(entry: fingerprints.Entry, shapes: Shapes) -> tuple[dict[str, Any] | None, Shapes]:
    """The config that the tensors tell, and their shapes; None where they contradict themselves."""
    family = families()[entry.family]
    assert family.infer is not None
    known = family.layouts.get(entry.layout)
    seed: dict[str, Any] = {"family": entry.family}
    skeleton = known.skeleton if known is not None else None
    if skeleton is not None:
        seed |= skeleton(list(names.respelled(shapes, seed, entry.layout)))
    ours: Shapes = {}
    try:
        ours = _shapes(read(_dummies(shapes), seed, entry.layout, None)[0])
        config = family.infer(ours)
        if names.differences(config, ours):
            return None, ours
    except _NOT_THESE_SHAPES:
        return None, ours
    if skeleton is not None and config.get("transformer") is not None:
        config = with_heads(config, None)
    return config, ours


def _shapes_if_read(config: Config, layout: str, shapes: Shapes) -> Shapes | None:
    """Our shapes, or None where the names are not exactly the model's."""
    known = names.layout_of(config, layout)
    if known.reading is None:
        spelled = names.respelled(shapes, config, layout)
        wanted = {r.theirs for r in names.rows_for(spelled, config, layout)}
        if names_differ(wanted, names.informative(spelled, config, layout)):
            return None
    try:
        return _shapes(read(_dummies(shapes), config, layout, None)[0])
    except _NOT_THESE_SHAPES:
        return None


def _fits(config: Config, ours: Shapes) -> bool:
    try:
        return not names.differences(config, ours)
    except _NOT_THESE_SHAPES:
        return False


def _is_doubtful(config: Config, layout: str, shapes: Shapes, size: Size | None) -> bool:
    """Whether the number of positions is a square's but for a few tokens that are no patches.

    Tensors of another library are then hardly those of a model that takes all of them for patches:
    it has many that differ in just that, and in the names of none of their tensors.
    """
    family = get(config)
    ours = names.layout_of(config, layout).reading is not None
    if ours or size is not None or family.num_patches is None:
        return False
    return names.is_almost_square(family.num_patches(config, shapes))


def _at_own_size(found: list[Candidate], size: Size | None) -> list[Candidate]:
    """Keeps one candidate of an architecture that is registered at several sizes: the file's."""
    kept: dict[Any, list[Candidate]] = {}
    for candidate in found:
        key = family_of(candidate.config), candidate.layout, repr(comparable(candidate.config))
        kept.setdefault(key, []).append(candidate)
    return [_closest_size(same, size) for same in kept.values()]


def _closest_size(same: list[Candidate], size: Size | None) -> Candidate:
    size = size or same[0].image_size
    if size is None or len(same) == 1:
        return same[0]
    side = max(size)
    return min(same, key=lambda candidate: abs(max(candidate.preprocess.height_width) - side))


def _matching_layout(shapes: Shapes, config: Config) -> str:
    """The layout of the config's family with the most of these names."""

    def hits(layout: str) -> float:
        present = set(names.respelled(shapes, config, layout))
        wanted = {r.theirs for r in names.rows_for(present, config, layout)}
        return len(present & wanted) / max(len(present | wanted), 1)

    return max(names.holding(config), key=hits)


def why_none(shapes: Shapes) -> str:
    """Why no model has these tensors: what differs from the model that is closest by its names."""
    if pair := released.clash(shapes):
        return f"{pair[0]!r} and {pair[1]!r} mean the same parameter: the file mixes two spellings"
    present = names.collapsed(shapes)

    def alike(theirs: Iterable[str]) -> float:
        wanted = names.collapsed(theirs)
        return len(present & wanted) / len(present | wanted)

    best = max(
        (
            (alike(spelled), name, layout)
            for name, family in families().items()
            for config in [next(iter(family.architectures.values())).config]
            for layout, spelled in names.all_spelled({"family": name, **config})
        ),
        default=(0.0, "", ""),
    )
    share, family_name, layout = best
    if share < 0.2:
        first = ", ".join(map(repr, list(shapes)[:4]))
        return f"its tensors have the names of no model here; they begin with {first}"
    family = families()[family_name]
    models = {n: {"family": family_name, **a.config} for n, a in family.architectures.items()}
    counts = {n: len(set(shapes) & set(names.spelled(c, layout))) for n, c in models.items()}
    name = max(counts, key=lambda n: (counts[n], -len(names.spelled(models[n], layout))))
    differ = names_differ(
        {r.theirs for r in names.rows_for(shapes, models[name], layout)},
        names.informative(shapes, models[name], layout),
    )
    if differ:
        return f"the closest model is {name} ({family.title}), layout {layout!r}: {differ}"
    return (
        f"its tensors have the names of {family.title}'s, layout {layout!r}, and the sizes of no "
        "registered one"
    )


def _dummies(shapes: Shapes) -> dict[str, np.ndarray]:
    """Tensors of these shapes that take no memory."""
    return {n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()}


def _shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {n: x.shape for n, x in tensors.items()}

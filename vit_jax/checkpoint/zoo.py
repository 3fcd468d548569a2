"""The survey's families, read and renamed by their `Names` (see `tables.family`).

Trees here are flat and hold running statistics beside parameters, see `vit_jax.variables`.
"""

import functools
import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vit_jax.checkpoint import describe
from vit_jax.checkpoint.files.archive import Edited
from vit_jax.checkpoint.shapes import Shape, require_shapes
from vit_jax.checkpoint.tables.family import Edits, Names, Size
from vit_jax.tree import arrays
from vit_jax.errors import UserError
from vit_jax.families.registry import ModelSpec, family_of, is_google, registered
from vit_jax.families.rules import Exported, Imported, Table, require_names, rule
from vit_jax.models import variants

Config = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
LINEN = "linen"
_HEAD = "head"
# Counts batches where PyTorch's momentum is None, which it is in none of these models.
_COUNTER = "num_batches_tracked"


def names_of(config: Config) -> Names:
    """What a converter must know of the config's family."""
    return _names(family_of(config))


@functools.cache
def _names(family: str) -> Names:
    tables = variants.families()[family].tables
    return importlib.import_module(f"vit_jax.checkpoint.tables.{tables}").FAMILIES[family]


def table(config: Config, layout: str) -> Table:
    """Names of that layout to ours, heads included; of 'linen', ours to ours.

    Raises UserError for a layout that the family does not have.
    """
    names = names_of(config)
    if layout == LINEN:
        first = next(iter(names.layouts.values()))
        return [row for r in first(config) for ours in r.ours for row in rule(ours, ours)]
    if layout not in names.layouts:
        raise UserError(
            f"{family_of(config)} has no layout {layout!r}; it has {', '.join(names.layouts)}"
        )
    return names.layouts[layout](config)


def imported(theirs: Tensors, config: Config, layout: str) -> Imported:
    """Our tensors, lazily, from a state dict of that layout, with its heads or without."""
    rows = table(config, layout)
    if not any(_is_head(r.ours[0]) and r.theirs in theirs for r in rows):
        rows = _headless(rows)
    return Imported(rows, theirs, ignore=_ignored(config))


def exported(ours: Tensors, config: Config, layout: str) -> Tensors:
    """A state dict of that layout, lazily: all that its library's strict loader asks for."""
    rows = table(config, layout)
    if not any(map(_is_head, ours)):
        rows = _headless(rows)
    if layout == LINEN:
        return Exported(rows, ours)
    buffers = dict(names_of(config).buffers(config))
    for row in rows:
        if row.theirs.endswith("running_mean"):
            buffers[row.theirs.removesuffix("running_mean") + _COUNTER] = np.zeros((), np.int64)
    added = {name: functools.partial(np.asarray, x) for name, x in buffers.items()}
    return Edited(Exported(rows, ours), added=added)


def _is_head(name: str) -> bool:
    return name.startswith(_HEAD)


def _headless(rows: Table) -> Table:
    return [r for r in rows if not _is_head(r.ours[0])]


def _ignored(config: Config) -> tuple[str, ...]:
    return (*names_of(config).ignore, rf"(?:.*\.)?{_COUNTER}")


def expected_shapes(config: Config, *, num_classes: int, image_size: Size) -> dict[str, Shape]:
    """Shapes of parameters and statistics by our names; nothing is computed."""
    # As text: configs hold dicts and lists, which no cache takes.
    return dict(_shapes(_Frozen(config), num_classes, tuple(image_size)))


class _Frozen:
    """A config as a key of a cache, equal where its text is."""

    def __init__(self, config: Config):
        self.config, self._text = dict(config), repr(sorted(config.items()))

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self._text == other._text


@functools.lru_cache(64)
def _shapes(key: _Frozen, num_classes: int, image_size: Size) -> dict[str, Shape]:
    import jax

    from vit_jax.models import from_config
    from vit_jax.variables import named

    model = from_config(key.config, num_classes=num_classes)
    images = jax.ShapeDtypeStruct((1, *image_size, 3), "float32")
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return {name: tuple(leaf.shape) for name, leaf in arrays(named(variables)).items()}


def image_size_of(config: Config, shapes: Mapping[str, Shape]) -> Size:
    """(height, width) in pixels that tensors are for; where they tell nothing, the model's own.

    Raises UserError where the tensors are not of a square image, and so leave it open.
    """
    try:
        found = names_of(config).image_size(config, shapes)
    except KeyError as error:
        raise UserError(f"these are no parameters of {_called(config)}: no {error}") from None
    return found or default_size(config)


def is_for(config: Config, shapes: Mapping[str, Shape], side: int) -> bool:
    """Whether these tensors are for square images of so many pixels."""
    try:
        return image_size_of(config, shapes) == (side, side)
    except UserError:
        return False


def default_size(config: Config) -> Size:
    """The image size of the registered model that has this config, else of its family's first."""
    models = variants.families()[family_of(config)].variants
    name = str(config.get("model_name"))
    if name not in models:
        name = next(iter(fitting_models(config)), next(iter(models)))
    side = models[name].preprocess.size
    return side, side


def check(config: Config, shapes: Mapping[str, Shape], image_size: Size | None = None) -> None:
    """Raises UserError unless names and shapes are those of the model with this head and size.

    Of images that are not square, and of no known size, what depends on the size is not checked.
    """
    size, free = image_size, set()
    try:
        size = size or image_size_of(config, shapes)
    except UserError:
        size = default_size(config)
        resize = names_of(config).resize
        free = set(resize(config, size, size, "timm")) if resize is not None else set()
    expected = expected_shapes(config, num_classes=describe.num_classes(shapes), image_size=size)
    expected |= {name: shapes[name] for name in free & shapes.keys()}
    require_names(set(expected), set(shapes), "tensors")
    require_shapes(expected, shapes)


def resize_edits(
    config: Config, shapes: Mapping[str, Shape], old: Size, new: Size, method: str
) -> Edits:
    """What fits tensors of these shapes, for images of size `old`, to images of size `new`.

    Raises UserError where the architecture takes no other size.
    """
    classes = describe.num_classes(shapes)
    after = expected_shapes(config, num_classes=classes, image_size=new)
    resize = names_of(config).resize
    edits = resize(config, old, new, method) if resize is not None else {}
    wrong = [n for n, s in shapes.items() if after.get(n) != tuple(s) and n not in edits]
    if wrong or after.keys() != shapes.keys():
        raise UserError(
            f"{_called(config)} takes images of {old[0]}×{old[1]} pixels with these weights: "
            f"{', '.join(wrong[:3]) or 'its layers'} cannot be resized to {new[0]}×{new[1]}"
        )
    return {n: edit for n, edit in edits.items() if n in shapes}


def _called(config: Config) -> str:
    return str(config.get("model_name") or f"a model of the family {family_of(config)}")


def fitting_models(config: Config) -> tuple[str, ...]:
    """Registered models whose constructor fields these are."""
    fields = plain_fields(config)
    models = variants.families()[family_of(config)].variants
    return tuple(name for name, v in models.items() if plain_fields(v.config) == fields)


def plain_fields(config: Config) -> dict[str, Any]:
    """Constructor fields without those that change no tensor, in types that compare."""
    ignored = ("family", "model_name", "dtype", "remat", "scan")

    def plain(x: Any) -> Any:
        if isinstance(x, (Mapping, ConfigDict)):
            return {k: plain(v) for k, v in x.items() if k not in ignored}
        return [plain(v) for v in x] if isinstance(x, (list, tuple)) else x

    return plain(config)


def layout_of(names: Iterable[str], config: Config) -> str | None:
    """In which of the family's layouts these names are, ours first; None if in none."""
    present = set(names)
    for layout in (LINEN, *names_of(config).layouts):
        if _fits(present, config, layout):
            return layout
    return None


def closest_layout(names: Iterable[str], config: Config) -> str:
    """The layout with the most of these names."""
    present = set(names)

    def hits(layout: str) -> int:
        return len(present & {r.theirs for r in table(config, layout)})

    return max((LINEN, *names_of(config).layouts), key=hits)


def _fits(present: set[str], config: Config, layout: str) -> bool:
    rows = table(config, layout)
    wanted = {r.theirs for r in rows}
    if not present & wanted:
        return False
    missing, extra = wanted - present, present - wanted
    if any(not any(re.fullmatch(p, n) for p in _ignored(config)) for n in extra):
        return False
    return not missing or missing == {r.theirs for r in rows if _is_head(r.ours[0])}


def recognised(shapes: Mapping[str, Shape]) -> list[tuple[ModelSpec, str]]:
    """The registered models whose tensors these can be, and in which layout."""
    present = set(shapes)
    found = []
    for spec in registered().values():
        if is_google(spec.config):
            continue
        config = spec.config.to_dict()
        layout = layout_of(present, config)
        if layout is not None and _same_shapes(shapes, config, layout):
            found.append((spec, layout))
    return found


def _same_shapes(theirs: Mapping[str, Shape], config: Config, layout: str) -> bool:
    empty = {n: np.broadcast_to(np.float32(0), s) for n, s in theirs.items()}
    try:
        ours = {n: x.shape for n, x in imported(empty, config, layout).items()}
        check(config, ours)
    except UserError:
        return False
    return True

"""Names and shapes of any family's tensors, in every layout that it has.

Trees here are flat and hold running statistics beside parameters, see `vit_jax.variables`. Two
layouts belong to every family: 'linen', our own names, and 'official', the spelling of the files
that the original code reads, which is 'linen' where a family says nothing else.
"""

import contextlib
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from vit_jax.checkpoint.files.archive import Edited, Renamed
from vit_jax.errors import UserError
from vit_jax.families import released
from vit_jax.families.family import (
    RGB,
    Config,
    Edit,
    Layout,
    Shape,
    Shapes,
    Size,
    channels,
    is_head,
)
from vit_jax.families.registry import SPEED, comparable, family_of, get
from vit_jax.families.rules import (
    Exported,
    Imported,
    Rule,
    Table,
    names_differ,
    require_names,
    rule,
)
from vit_jax.variables import arrays

Tensors = Mapping[str, np.ndarray]
R = TypeVar("R")
LINEN, OFFICIAL = "linen", "official"
# PyTorch's BatchNorm counts batches for a momentum of None, which none of these models has.
_COUNTER = "num_batches_tracked"
# A masked autoencoder looks at one patch of so many, unless a run says otherwise.
KEPT_OF = 4


class _Frozen:
    """A config as a key of a cache, equal where its JSON is, in which lists are tuples too."""

    def __init__(self, config: Config):
        self.config = dict(config)
        self._text = json.dumps(self.config, sort_keys=True, default=repr)

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self._text == other._text


def _once_a_config(function: Callable[..., R]) -> Callable[..., R]:
    """Remembers what a function of a config, and of what can be hashed, returned: not to change."""

    @functools.lru_cache(256)
    def remembered(key: _Frozen, *args: Any, **named: Any) -> R:
        return function(key.config, *args, **named)

    @functools.wraps(function)
    def call(config: Config, *args: Any, **named: Any) -> R:
        return remembered(_Frozen(config), *args, **named)

    return call


def layouts_of(config: Config) -> tuple[str, ...]:
    """The layouts that the family of this config has: its own, then those of every family."""
    return tuple(dict.fromkeys([*get(config).layouts, OFFICIAL, LINEN]))


def layout_of(config: Config, layout: str) -> Layout:
    """What is known of a layout of the config's family; UserError for one that it does not have."""
    own = get(config).layouts
    if layout in own:
        return own[layout]
    if layout in (LINEN, OFFICIAL):
        return Layout(_own_names, reading=released.reading)
    known = ", ".join(dict.fromkeys([*own, OFFICIAL]))
    raise UserError(f"{called(config)} has no layout {layout!r}; it has {known}")


def torch_layout(config: Config, layout: str) -> str:
    """The layout of a state dict: 'official' means the paper's own repository in PyTorch.

    For families whose official code is JAX it means what it does elsewhere.
    """
    family = get(config)
    return family.official if layout == OFFICIAL and family.official in family.layouts else layout


def called(config: Config) -> str:
    """What to call a model in a message."""
    return str(config.get("model_name") or f"a model of the family {family_of(config)}")


def table(config: Config, layout: str) -> Table:
    """Names of that layout and ours, heads included."""
    return layout_of(config, layout).table(config)


@_once_a_config
def _own_names(config: Config) -> Table:
    """Ours to ours."""
    family = get(config)
    if family.shapes is not None:
        shapes = expected_shapes(config, num_classes=1, image_size=default_size(config))
        return [r for n in shapes for r in rule(n, n)]
    first = next(iter(family.layouts.values()))
    return [Rule(o, (o,), statistic=r.statistic) for r in first.table(config) for o in r.ours]


def statistics(config: Config) -> frozenset[str]:
    """The names of running statistics, as the family's tables tell them."""
    if parts := get(config).parts(config):
        return frozenset(f"{at}/{name}" for at, part in parts.items() for name in statistics(part))
    if get(config).shapes is not None:
        return frozenset()
    return frozenset(r.ours[0] for r in _own_names(config) if r.statistic)


@_once_a_config
def _rows(config: Config, layout: str, *, head: bool) -> Table:
    known = layout_of(config, layout)
    if head:
        return known.table(config)
    if known.headless is not None:
        return known.headless(config)
    return [r for r in known.table(config) if not is_head(r.ours[0])]


def rows_for(theirs: Iterable[str], config: Config, layout: str) -> Table:
    """The table that reads a file of these names: without heads where it has none."""
    present = set(theirs)
    headless = _rows(config, layout, head=False)
    if present <= {r.theirs for r in headless}:  # a layout may hold the model without a head only
        return headless
    rows = _rows(config, layout, head=True)
    has_head = any(r.theirs in present for r in rows if is_head(r.ours[0]))
    return rows if has_head else headless


def informative(theirs: Iterable[str], config: Config, layout: str) -> set[str]:
    """The names of a file but for those that carry no information in its layout."""
    known = layout_of(config, layout)
    ignored = [*known.ignore, *map(re.escape, known.zeros), rf"(?:.*\.)?{_COUNTER}"]
    return {n for n in theirs if not any(re.fullmatch(p, n) for p in ignored)}


def imported(theirs: Tensors, config: Config, layout: str) -> Imported:
    """Our tensors, lazily, from a state dict of that layout, with its heads or without.

    Layouts of several ages are read by what names there are; `check` says whether they are all.

    Raises UserError for names that are missing or not expected.
    """
    known = layout_of(config, layout)
    if known.reading is not None:
        return Imported(known.reading(shapes_of(theirs)), theirs)
    if edit := before_reading(theirs, config, layout):
        theirs = applied(edit, theirs)
    kept = informative(theirs, config, layout)
    rows = rows_for(theirs, config, layout)
    require_names({r.theirs for r in rows}, kept)
    for name in known.zeros.keys() & set(theirs):
        _require_zeros(name, theirs[name], config)
    return Imported(rows, Renamed(theirs, {n: n for n in kept}))


def _require_zeros(name: str, x: np.ndarray, config: Config) -> None:
    """UserError for a tensor that our model does not have, unless all its numbers are zero."""
    if np.any(x):
        raise UserError(
            f"expected zeros in {name!r}, which a {get(config).title} does not have; got numbers "
            f"up to {np.abs(x).max():.3g}: the weights were trained on as another model, such as "
            "a classifier"
        )


def before_reading(theirs: Tensors, config: Config, layout: str) -> Edit | None:
    """What a layout asks for before a file's tensors (the table's spelling) are read."""
    edit = layout_of(config, layout).before_reading
    return None if edit is None else edit(config, theirs)


def completed(
    ours: Tensors, config: Config, layout: str, image_size: Size
) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors with what their layout leaves out, and how that was made, in words."""
    after_reading = layout_of(config, layout).after_reading
    edit = after_reading(shapes_of(ours), image_size) if after_reading is not None else None
    if edit is None:
        return ours, ()
    return applied(edit, ours), (edit.step,)


def reduced(
    ours: Tensors, config: Config, layout: str, image_size: Size | None
) -> tuple[Tensors, Edit | None]:
    """The tensors as a layout can hold them, and the edit that made them so, if there is one."""
    _rows(config, layout, head=any(map(is_head, ours)))  # refuses a model that it cannot hold
    before_writing = layout_of(config, layout).before_writing
    edit = before_writing(config, ours, image_size) if before_writing is not None else None
    return (ours, None) if edit is None else (applied(edit, ours), edit)


def applied(edit: Edit, tensors: Tensors) -> Tensors:
    """The tensors after an edit, lazily."""
    return Edited(tensors, changed=edit.changed, dropped=edit.dropped, added=edit.added)


def spelled(config: Config, layout: str) -> list[str]:
    """All names of a model in a layout."""
    return [r.theirs for r in _rows(config, layout, head=True)]


def holding(config: Config) -> list[str]:
    """The layouts that can hold a model."""
    return [layout for layout, _ in all_spelled(config)]


def all_spelled(config: Config) -> Iterator[tuple[str, list[str]]]:
    """Every layout that can hold a model, and all names of it there."""
    for layout in layouts_of(config):
        with contextlib.suppress(UserError):  # what it cannot hold it refuses
            yield layout, spelled(config, layout)


def exported(ours: Tensors, config: Config, layout: str) -> Tensors:
    """A state dict of that layout, lazily: all that its library's strict loader asks for.

    Raises UserError for names that are missing or not expected, and for a model that the layout
    cannot hold.
    """
    has_head = any(map(is_head, ours))
    rows = _rows(config, layout, head=has_head)
    if has_head and not any(map(is_head, (o for r in rows for o in r.ours))):
        raise UserError(
            f"the layout {layout!r} holds {called(config)} without a head only; drop the head "
            "(`vit-jax convert --num-classes 0`)"
        )
    if layout in (LINEN, OFFICIAL):
        return Exported(rows, ours)
    known = layout_of(config, layout)
    buffers = dict(known.buffers(config, ours))
    for name, like in known.zeros.items():
        if like in ours:
            buffers[name] = np.zeros(np.shape(ours[like])[-1:], ours[like].dtype)
    for row in rows:
        if row.statistic and row.theirs.endswith("running_mean"):
            buffers[row.theirs.removesuffix("running_mean") + _COUNTER] = np.zeros((), np.int64)
    added = {name: functools.partial(np.asarray, x) for name, x in buffers.items()}
    return Edited(Exported(rows, ours), added=added)


def official(ours: Tensors, config: Config | None) -> Tensors:
    """The spelling of the released files, for families that have one, else our own names.

    Args:
      config: None for tensors of no known family.
    """
    if config is None or OFFICIAL not in get(config).layouts:
        return ours
    return Exported(released.writing(ours), ours)


def respelled(names: Iterable[str], config: Config, layout: str) -> dict[str, str]:
    """The table's spelling of a state dict's names -> their own, where a library has several."""
    respell = layout_of(config, layout).respell
    return {n: n for n in names} if respell is None else respell(names)


# --- shapes ---------------------------------------------------------------------------------------


def expected_shapes(config: Config, *, num_classes: int, image_size: Size) -> dict[str, Shape]:
    """Shapes of parameters and statistics by our names, blocks not stacked; nothing is computed."""
    shapes = get(config).shapes
    if shapes is not None and (known := shapes(config, num_classes, image_size)) is not None:
        return known
    # What changes no shape is left out, so that equal models are traced once.
    told = {field: x for field, x in config.items() if field not in ("model_name", *SPEED)}
    return dict(_traced(told, num_classes, tuple(image_size)))


@_once_a_config
def _traced(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape]:
    import jax

    from vit_jax.models import from_config
    from vit_jax.variables import named

    model = from_config(config, num_classes=num_classes)
    inputs = [jax.ShapeDtypeStruct(*x) for x in one_of(config, image_size).values()]
    variables = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x, train=False), *inputs)
    return {name: tuple(leaf.shape) for name, leaf in arrays(named(variables)).items()}


def one_of(config: Config, image_size: Size) -> dict[str, tuple[Shape, str]]:
    """Shape and type of a batch of one, for each input of the model in the order of its arguments.

    Args:
      config: Constructor fields.
      image_size: (height, width) in pixels.
    """
    family = get(config)
    patches = math.prod(grid_of(config, image_size) or (1,))
    batches = {
        "images": ((1, *image_size, channels(config)), "float32"),
        "tokens": ((1, family.text_length(config)), "int32"),
        "kept": ((1, max(patches // KEPT_OF, 1)), "int32"),
    }
    return {name: batches[name] for name in family.inputs}


def vocabulary_size(config: Config) -> int:
    """Entries of the vocabulary of a model that takes tokens; all ids are below it."""
    configs = [config, *get(config).parts(config).values()]
    return min(known["vocab_size"] for known in configs if "vocab_size" in known)


def channels_of(config: Config, shapes: Shapes) -> int:
    """The number of channels of the images that tensors are for; RGB's where they tell none."""
    return get(config).channels_of(config, shapes)


def with_channels(config: Config, shapes: Shapes) -> dict[str, Any]:
    """The config with the number of channels that the tensors tell, where it is not RGB's.

    Raises UserError where the config says another number.
    """
    found = channels_of(config, shapes)
    if config.get("channels", found) != found:
        raise UserError(
            f"the tensors are for images of {found} channels; the model here is one of "
            f"{config['channels']}"
        )
    others = {field: value for field, value in config.items() if field != "channels"}
    return others if found == RGB else {**others, "channels": found}


def head_is_zero(tensors: Tensors) -> bool:
    """Whether every number of the heads is zero; a norm before a head does not count."""
    return not any(tensors[n].any() for n in tensors if is_head(n) and "norm" not in n)


def num_classes_of(shapes: Shapes) -> int:
    """Outputs of the heads; 0 without one."""
    kernels = (s[-1] for n, s in shapes.items() if is_head(n) and n.endswith("/kernel"))
    return next(kernels, 0)


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    """The shape of every tensor; one that lies in a file is not read for it."""
    if specs := getattr(tensors, "specs", None):
        return {name: spec.shape for name, spec in specs.items()}
    return {name: np.shape(x) for name, x in tensors.items()}


def default_size(config: Config) -> Size:
    """The image size of the registered model that has this config, else of its family's first."""
    models = get(config).architectures
    name = config.get("model_name")
    if name not in models:
        name = next(iter(fitting_models(config)), next(iter(models)))
    return models[str(name)].default.preprocess.height_width


def fitting_models(config: Config) -> tuple[str, ...]:
    """Registered models whose constructor fields these are, without those that are aliases."""
    fields = comparable(config)
    return tuple(
        name
        for name, known in get(config).architectures.items()
        if known.alias_of is None and comparable(known.config) == fields
    )


def image_size_of(config: Config, shapes: Shapes) -> Size | None:
    """(height, width) in pixels that tensors are for; where they tell nothing, the model's own.

    None where they leave it open, a number of patches that is no square's, and for models that take
    no images.
    Raises UserError for tensors that are not of this model.
    """
    if "images" not in get(config).inputs:
        return None
    try:
        return get(config).image_size(config, shapes) or default_size(config)
    except UserError:
        return None
    except KeyError as error:
        raise UserError(f"these are no parameters of {called(config)}: no {error}") from None


def grid_of(config: Config, image_size: Size | None) -> Size | None:
    """(rows, columns) of patches of an image; None without a size, or without one grid."""
    stride = get(config).stride
    if stride is None or image_size is None:
        return None
    height, width = stride(config)
    return image_size[0] // height, image_size[1] // width


def tells_image_size(config: Config, shapes: Shapes) -> bool:
    """Whether a tensor of this model depends on the image size, so that tensors may tell it."""
    try:
        return get(config).image_size(config, shapes) is not None
    except UserError:  # it depends, and is of no square image
        return True


def check(config: Config, shapes: Shapes, image_size: Size | None = None) -> None:
    """Raises UserError unless names and shapes are those of the model with this head.

    Where neither `image_size` nor the tensors tell the size of the image, because it is not
    square, whatever depends on it may have any size.
    """
    if wrong := differences(config, shapes, image_size):
        raise UserError(wrong)


def differences(config: Config, shapes: Shapes, image_size: Size | None = None) -> str:
    """In words, how names and shapes differ from those of the model; '' if they do not."""
    family, config = get(config), with_channels(config, shapes)
    missing = {r.ours[0] for r in _own_names(config) if not is_head(r.ours[0])} - shapes.keys()
    if missing and family.shapes is None:
        return f"tensors do not fit: {names_differ(missing | set(shapes), set(shapes))}"
    try:
        size, free = image_size or image_size_of(config, shapes), set()
        if size is None and family.num_patches is not None and family.stride is not None:
            height, width = family.stride(config)  # an image of one row has as many patches
            size = height, width * family.num_patches(config, shapes)
    except (KeyError, IndexError) as error:
        return f"these are no parameters of {called(config)}: no {error}"
    if size is None:
        size = default_size(config)
        free = set(resizes(config, size, size, "timm"))
    expected = expected_shapes(config, num_classes=num_classes_of(shapes), image_size=size)
    expected |= {name: shapes[name] for name in free & shapes.keys()}
    if wrong := names_differ(set(expected), set(shapes)):
        return f"tensors do not fit: {wrong}"
    return shapes_differ(expected, shapes)


def resizes(config: Config, old: Size, new: Size, method: str) -> dict[str, Any]:
    """The family's own `resize`; {} where it has none."""
    resize = get(config).resize
    return resize(config, old, new, method) if resize is not None else {}


def is_almost_square(count: int) -> bool:
    """Whether so many positions are a square grid's and one to five more, or one less."""
    if math.isqrt(count) ** 2 == count:
        return False
    return any(math.isqrt(count - extra) ** 2 == count - extra for extra in (-1, 1, 2, 3, 4, 5))


def require_shapes(expected: Mapping[str, Shape], got: Mapping[str, Shape]) -> None:
    """Raises UserError, naming each tensor whose shape is not the expected one."""
    if wrong := shapes_differ(expected, got):
        raise UserError(wrong)


def shapes_differ(expected: Mapping[str, Shape], got: Mapping[str, Shape]) -> str:
    """The tensors whose shape is not the expected one, in words; '' if there is none."""
    wrong = [
        f"{name!r}: expected shape {tuple(shape)}, got {tuple(got[name])}"
        for name, shape in expected.items()
        if name in got and tuple(got[name]) != tuple(shape)
    ]
    if not wrong:
        return ""
    more = f"\n  … and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    return "wrong shapes:\n  " + "\n  ".join(wrong[:20]) + more


def collapsed(names: Iterable[str]) -> frozenset[str]:
    """Names with every number replaced by '#': what does not depend on a model's depth."""
    return frozenset(re.sub(r"\d+", "#", name) for name in names)

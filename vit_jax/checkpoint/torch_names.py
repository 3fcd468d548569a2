"""Parameters <-> state dicts of PyTorch libraries, NumPy in and out; torch is not needed."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import describe, zoo
from vit_jax.checkpoint.files.archive import to_numpy
from vit_jax.checkpoint.shapes import check_shapes, param_shapes
from vit_jax.checkpoint.stacked import stack_blocks, unstack_blocks
from vit_jax.checkpoint.tables import hf, timm
from vit_jax.tree import arrays, unflatten
from vit_jax.errors import UserError
from vit_jax.families.registry import is_google
from vit_jax.families.rules import Exported, Imported
from vit_jax.variables import collections, named

LAYOUTS = {"timm": timm, "hf": hf}


def from_torch(state_dict: Mapping[str, Any], model: Any, layout: str = "timm") -> dict[str, Any]:
    """Variables of `model` from another library's state dict.

    Args:
      state_dict: Arrays or torch tensors by name. The number of classes and the grid are the
        arrays' own, so heads and sizes other than the model's default work.
      model: A registered name, a ModelSpec, a config mapping, or a linen module.
      layout: Whose names these are: 'timm', 'hf', or another that the model's family has.

    Returns:
      {'params': nested dict of NumPy arrays of their own memory}, dtypes as given, and
      'batch_stats' where the model has running statistics; blocks are stacked if the model scans
      over them.

    Raises:
      UserError: for missing or unexpected names (both sides listed) or wrong shapes.
    """
    config = describe.config_of(model)
    spelled = respelled(state_dict, layout) if is_google(config) else {n: n for n in state_dict}
    theirs = {name: to_numpy(state_dict[old]) for name, old in spelled.items()}
    ours = imported(theirs, config, layout)
    flat = {name: np.array(x, order="C") for name, x in ours.items()}
    check_params(config, flat)
    tree = unflatten(flat)
    variables = collections(stack_blocks(tree) if describe.is_scanned(config) else tree)
    return {name: tree for name, tree in variables.items() if tree}


def to_torch(variables: Mapping[str, Any], model: Any, layout: str = "timm") -> dict[str, Any]:
    """The state dict that another library loads strictly; the inverse of `from_torch`.

    Args:
      variables: {'params': nested dict of NumPy or JAX arrays}, blocks stacked or not, and
        'batch_stats' where the model has running statistics.
      model: As for `from_torch`.
      layout: As for `from_torch`.

    Returns:
      NumPy arrays by name, of their own memory.

    Raises:
      UserError: if the parameters are not this model's, or the library has no such layer
        (`pre_logits`; see `drop_pre_logits`).
    """
    config = describe.config_of(model)
    tree = named(variables) if "params" in variables else variables
    ours = arrays(unstack_blocks(tree))
    ours = {name: to_numpy(x) for name, x in ours.items()}
    theirs = exported(ours, config, layout)
    check_params(config, ours)
    return {name: np.array(x, order="C") for name, x in theirs.items()}


def imported(theirs: Mapping[str, np.ndarray], config: Mapping[str, Any], layout: str) -> Imported:
    """Our tensors, lazily, from a state dict of that layout."""
    if not is_google(config):
        return zoo.imported(theirs, config, layout)
    library = _library(layout)
    head = any(name.startswith(library.HEAD) for name in theirs)
    rows = library.table(config, head=head)
    return Imported(rows, theirs, ignore=library.IGNORE, **describe.num_heads(config))


def respelled(names: Iterable[str], layout: str) -> dict[str, str]:
    """The table's spelling of a state dict's names -> their own, where a library has several."""
    respell = getattr(_library(layout), "respell", lambda names: {n: n for n in names})
    return respell(names)


def exported(
    ours: Mapping[str, np.ndarray], config: Mapping[str, Any], layout: str
) -> Mapping[str, np.ndarray]:
    """A state dict of that layout, lazily, from our unstacked flat tensors."""
    if not is_google(config):
        return zoo.exported(ours, config, layout)
    head = any(name.startswith("head/") for name in ours)
    rows = _library(layout).table(config, head=head)
    return Exported(rows, ours, **describe.num_heads(config))


def check_params(config: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Raises UserError for shapes that are not those of the model with this head and grid."""
    shapes = describe.shapes_of(params)
    if not is_google(config):
        zoo.check(config, shapes)
        return
    check_shapes(
        param_shapes(
            config,
            num_classes=describe.num_classes(shapes),
            num_patches=describe.num_patches(config, shapes),
        ),
        params,
    )


def drop_pre_logits(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without `pre_logits` and without the head that reads it: features only.

    The head was trained on the output of `pre_logits`; on anything else its logits mean nothing.
    """
    if "pre_logits" not in params:
        return dict(params)
    return {name: x for name, x in params.items() if name not in ("pre_logits", "head")}


def _library(layout: str) -> Any:
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; known: {sorted(LAYOUTS)}")
    return LAYOUTS[layout]

"""Official `.npz` checkpoints: the original code's load, save and load_pretrained."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import describe, zoo
from vit_jax.checkpoint.files.archive import to_numpy
from vit_jax.checkpoint.files.formats import write_npz
from vit_jax.checkpoint.shapes import check_shapes
from vit_jax.checkpoint.source import open_source
from vit_jax.checkpoint.stacked import is_stacked, stack_blocks, unstack_blocks
from vit_jax.checkpoint.tables import released
from vit_jax.tree import arrays, flatten, unflatten
from vit_jax.errors import UserError
from vit_jax.families.registry import is_google
from vit_jax.families.resize import Grid, interpolate_posembed
from vit_jax.families.rules import Exported, listed

log = logging.getLogger(__name__)

_POSEMB = "Transformer/posembed_input/pos_embedding"


def load(path: str | os.PathLike, model: Any = None) -> dict[str, Any]:
    """Parameters of a checkpoint, whatever its format and layout.

    Reads official files in linen and released spelling (GroupNorm of shape (1, 1, 1, C), bfloat16
    stored as raw bytes, parameters below `params/` or `opt/target/`, stacked blocks), those of
    big_vision, timm's state dicts, Hugging Face directories, and runs, ours and the original's.

    Args:
      path: A file, a Hugging Face or Orbax directory, or the workdir of a run.
      model: Registered name or config, needed where a PyTorch file leaves the number of heads
        open.

    Returns:
      Nested dict of NumPy arrays in linen names, unstacked, dtypes as stored.

    Raises:
      UserError: for a file that is missing, unreadable, damaged, or holds Python objects.
    """
    with open_source(path, model) as source:
        return unflatten({name: np.array(x, order="C") for name, x in source.params().items()})


def save(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes parameters in the layout of the released files, which the original code loads.

    Args:
      path: Replaced as a whole, or left as it was.
      params: Nested dict of NumPy or JAX arrays in linen names; stacked blocks are unstacked.
      metadata: Text that the file carries where the original code does not look.
    """
    flat = arrays(unstack_blocks(params))
    tensors = Exported(released.writing(flat), {n: to_numpy(x) for n, x in flat.items()})
    write_npz(path, tensors, metadata)


def inspect_params(
    *,
    params: dict[str, Any],
    expected: Mapping[str, Any],
    fail_if_extra: bool = True,
    fail_if_missing: bool = True,
) -> dict[str, Any]:
    """Checks the names of `params` against those of `expected`, as the original's.

    Layers without weights (empty dicts), which serialisation loses, are put back.

    Args:
      params: Nested dict.
      expected: Nested dict.
      fail_if_extra, fail_if_missing: Whether a difference is an error or only logged.

    Returns:
      `params`.

    Raises:
      UserError: listing the names of both sides.
    """
    got, wanted = flatten(params), flatten(expected)
    missing = set()
    for name in wanted.keys() - got.keys():
        if isinstance(wanted[name], Mapping):
            params = unflatten(flatten(params) | {name: {}})
        else:
            missing.add(name)
    extra = got.keys() - wanted.keys()
    for kind, names in (("missing", missing), ("extra", extra)):
        if names:
            log.info("%s parameters: %s", kind, listed(sorted(names)))
    if (missing and fail_if_missing) or (extra and fail_if_extra):
        raise UserError(
            f"the checkpoint does not fit the model: {len(missing)} parameters missing, "
            f"{len(extra)} extra\n"
            f"  missing from the checkpoint: {listed(sorted(missing))}\n"
            f"  extra in the checkpoint: {listed(sorted(extra))}\n"
            f"  the checkpoint holds: {listed(sorted(got))}\n"
            f"  the model expects: {listed(sorted(wanted))}"
        )
    return params


def load_pretrained(
    *,
    pretrained_path: str | os.PathLike,
    init_params: Mapping[str, Any],
    model_config: Any,
    old_grid: Grid | None = None,
    new_grid: Grid | None = None,
) -> dict[str, Any]:
    """Pretrained weights adapted to a new task, as the original's.

    The head is the model's own. With `representation_size=None` a `pre_logits` of the file is
    dropped. Position embeddings are resized (bilinear, aligned corners).

    Args:
      pretrained_path: Whatever `load` reads.
      init_params: The model's parameters, running statistics among them, for the head and for
        every name and shape; if their blocks are stacked, so are the result's.
      model_config: Its `representation_size` and `classifier` are used.
      old_grid, new_grid: (rows, columns) of the file's and the model's patches where they form
        no square.

    Returns:
      Nested dict with the names, shapes and dtypes of `init_params`; a cast is logged.

    Raises:
      UserError: for a file that `load` cannot read or that does not fit.
    """
    stacked = is_stacked(init_params)
    init = arrays(unstack_blocks(init_params))
    flat = arrays(_load_for(pretrained_path, model_config))
    if not is_google(model_config):
        return _as_survey_model(pretrained_path, flat, init, model_config, stacked)
    if model_config.get("representation_size") is None:
        flat = {n: x for n, x in flat.items() if not n.startswith("pre_logits/")}
    flat = {n: x for n, x in flat.items() if not n.startswith("head/")}
    flat |= {n: x for n, x in init.items() if n.startswith("head/")}
    if _POSEMB in flat and _POSEMB in init:
        num_tokens = np.shape(init[_POSEMB])[1]
        if old_grid or new_grid or np.shape(flat[_POSEMB])[1] != num_tokens:
            prefix = model_config.get("classifier") in ("token", "token_unpooled")
            flat[_POSEMB] = interpolate_posembed(
                flat[_POSEMB], num_tokens, prefix, old_grid=old_grid, new_grid=new_grid
            )
    params = inspect_params(params=unflatten(flat), expected=unflatten(init))
    check_shapes({name: np.shape(x) for name, x in init.items()}, arrays(params))
    params = unflatten(_cast_like(arrays(params), init, pretrained_path))
    return stack_blocks(params) if stacked else params


def _as_survey_model(
    path: str | os.PathLike,
    flat: dict[str, Any],
    init: dict[str, Any],
    config: Mapping[str, Any],
    stacked: bool,
) -> dict[str, Any]:
    """The head is the model's own; what depends on the image size is resized, timm's way."""
    shapes, wanted = describe.shapes_of(flat), describe.shapes_of(init)
    old, new = zoo.image_size_of(config, shapes), zoo.image_size_of(config, wanted)
    if old != new:
        edits = zoo.resize_edits(config, shapes, old, new, "timm")
        flat |= {name: edit(flat[name]) for name, edit in edits.items()}
    flat = {n: x for n, x in flat.items() if not n.startswith("head")}
    flat |= {n: x for n, x in init.items() if n.startswith("head")}
    params = inspect_params(params=unflatten(flat), expected=unflatten(init))
    check_shapes(wanted, arrays(params))
    params = unflatten(_cast_like(arrays(params), init, path))
    return stack_blocks(params) if stacked else params


def _load_for(path: str | os.PathLike, model_config: Mapping[str, Any]) -> dict[str, Any]:
    """`load`; where only the model tells the number of attention heads, as the model has it."""
    if not is_google(model_config):
        return load(path, model_config)
    with open_source(path) as source:
        model = None if source.heads_known else model_config
    return load(path, model)


def _cast_like(
    params: Mapping[str, Any], like: Mapping[str, Any], path: str | os.PathLike
) -> dict[str, Any]:
    dtypes = {name: np.dtype(x.dtype) for name, x in like.items()}
    for old, new in sorted({(x.dtype.name, dtypes[n].name) for n, x in params.items()}):
        if old != new:
            log.warning("%s: parameters of type %s become %s, the model's", path, old, new)
    return {
        name: x if x.dtype == dtypes[name] else x.astype(dtypes[name]) for name, x in params.items()
    }

"""Weights in and out: the original code's load and load_pretrained, for files of every format.

A tree of a model without running statistics is its parameters alone, as in the original. Where a
model has statistics, a tree is Flax's dict of collections, {'params': …, 'batch_stats': …}.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.allow import Allow
from vit_jax.checkpoint import beside, edits, names, recorded
from vit_jax.checkpoint.facts import Facts, Model
from vit_jax.checkpoint.files.archive import to_numpy
from vit_jax.checkpoint.files.formats import write_npz, write_safetensors
from vit_jax.checkpoint.names import Tensors
from vit_jax.checkpoint.source import open_source, read_all
from vit_jax.checkpoint.stacked import is_stacked, stack_blocks, unstack_blocks
from vit_jax.checkpoint.starting import tensors_for
from vit_jax.class_names import class_names as known_class_names
from vit_jax.errors import UserError
from vit_jax.families import fingerprints
from vit_jax.families.family import Config, Size
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import ModelSpec, config_of, get, resolve
from vit_jax.families.resize import Grid, square
from vit_jax.families.rules import listed
from vit_jax.tree import arrays, flatten, unflatten
from vit_jax.variables import collections, is_variables, named

log = logging.getLogger(__name__)

Path = str | os.PathLike[str]


def load(
    path: Path,
    model: Any = None,
    *,
    image_size: Size | None = None,
    part: str | None = None,
    allow: Allow = (),
) -> dict[str, Any]:
    """The weights of a checkpoint, whatever its format and layout.

    Reads official files in linen and released spelling (GroupNorm of shape (1, 1, 1, C), bfloat16
    stored as raw bytes, parameters below `params/` or `opt/target/`, stacked blocks), those of
    big_vision, PyTorch state dicts, directories of Hugging Face and timm, and runs, ours and the
    original's.

    Args:
      path: A file or its address, a directory, or the workdir of a run.
      model: Registered name or config, needed where the tensors fit several models.
      image_size: (height, width) in pixels, where positions are computed.
      part: Which of several sets of weights in the file is meant, such as 'model_ema'.
      allow: What is no error here: 'other-function', 'not-finite'; see `vit_jax.allow`.

    Returns:
      Nested dict of NumPy arrays in linen names, unstacked, dtypes as stored: the parameters, or
      for a model with running statistics {'params': …, 'batch_stats': …}.

    Raises:
      UserError: for a file that is missing, unreadable, damaged, holds Python objects, or fits
        several models or none.
    """
    with open_source(path, model, image_size, part=part, allow=allow) as source:
        return _tree(read_all(source), source.facts.require_model())


def identify(
    path: Path,
    model: Any = None,
    *,
    image_size: Size | None = None,
    part: str | None = None,
    allow: Allow = (),
    every_number: bool = False,
) -> Facts:
    """What a checkpoint is, by its contents, without reading more of it than its head.

    Args:
      path: As for `load`.
      model: As for `load`.
      image_size: As for `load`.
      part: As for `load`.
      allow: As for `load`.
      every_number: Whether to look, too, for numbers that are NaN or infinite, and for biases that
        are zero: reads the whole.

    Raises:
      UserError: for a file that is unreadable, damaged or of no known format.
    """
    with open_source(path, model, image_size, part=part, allow=allow) as source:
        return dataclasses.replace(
            source.facts,
            head_is_zero=source.head_is_zero(),
            zero_biases=source.zero_biases() if every_number else None,
            not_finite=source.not_finite() if every_number else None,
        )


def _tree(flat: Tensors, config: Config) -> dict[str, Any]:
    """The parameters, or both collections where there are statistics."""
    variables = collections(flat, names.statistics(config))
    return variables if variables["batch_stats"] else variables["params"]


def as_variables(tree: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """{'params': …, 'batch_stats': …} of either kind of tree; 'batch_stats' may be {}."""
    return collections(named(tree), names.statistics(config))


def save(
    path: Path,
    params: Mapping[str, Any],
    *,
    model: Any = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes weights in the layout of the released files, which the original code loads.

    Args:
      path: Replaced as a whole, or left as it was.
      params: Nested dict of NumPy or JAX arrays in linen names, the parameters or Flax's dict of
        collections; stacked blocks are unstacked.
      model: Registered name, config or linen module, where the tree does not tell: by its names
        it does for every registered family.
      metadata: Text that the file carries where the original code does not look.
    """
    flat = {n: to_numpy(x) for n, x in arrays(unstack_blocks(named(params))).items()}
    config = config_of(model) if model is not None else _seed(flat)
    write_npz(path, names.official(flat, config), metadata)


def _seed(flat: Tensors) -> dict[str, Any] | None:
    """The family that has tensors of these names; None if there is none."""
    entries = fingerprints.index().get(fingerprints.fingerprint(flat), ())
    found = [entry.family for entry in entries if entry.layout == fingerprints.LINEN]
    return {"family": found[0]} if found else None


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
      fail_if_extra: Whether a name that is not expected is an error, or only logged.
      fail_if_missing: Whether a missing name is an error, or only logged.

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
    for kind, these in (("missing", missing), ("extra", extra)):
        if these:
            log.info("%s parameters: %s", kind, listed(sorted(these)))
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
    pretrained_path: Path,
    init_params: Mapping[str, Any],
    model_config: Any,
    old_grid: Grid | None = None,
    new_grid: Grid | None = None,
) -> dict[str, Any]:
    """Pretrained weights adapted to a new task, as the original's.

    A file of another family is read where the model's goes on from that, see `Family.starts_from`:
    the encoder of a masked autoencoder. The head is the model's own. Where the model's images have
    another number of channels, the kernels that read the pixels are fitted as timm does it, see
    `edits.with_channels`. With `representation_size=None` a `pre_logits` of the file is dropped.
    What depends on the image size is resized as the family's own code does (for the original's
    models bilinear, corners aligned; see `edits.resized`).

    Args:
      pretrained_path: Whatever `load` reads.
      init_params: The model's parameters, or its variables {'params': …, 'batch_stats': …}, which
        models with running statistics need; for the head and for every name and shape. If their
        blocks are stacked, so are the result's.
      model_config: Registered name, config or linen module.
      old_grid: (rows, columns) of the file's patches, where they form no square.
      new_grid: (rows, columns) of the model's patches, where they form no square.

    Returns:
      Nested dict with the names, shapes and dtypes of `init_params`; a cast is logged.

    Raises:
      UserError: for a file that `load` cannot read or that does not fit.
    """
    config = config_of(model_config)
    stacked = is_stacked(named(init_params))
    init = arrays(unstack_blocks(named(init_params)))
    flat: Tensors
    flat, recorded_size = tensors_for(pretrained_path, config, init)
    shapes = names.shapes_of(flat)
    if config.get("representation_size", True) is None:
        gone = [n for n in shapes if n.startswith("pre_logits/")]
        flat = {n: x for n, x in flat.items() if n not in gone}
    wanted = names.shapes_of(init)
    channels = names.channels_of(config, wanted)
    if edit := edits.with_channels(config, shapes, channels):
        log.warning("%s: %s", pretrained_path, edit.step)
        flat = names.applied(edit, flat)
        shapes = names.shapes_of(flat)
    old = recorded_size if old_grid is None else None
    old = old or _size_of(config, shapes, old_grid, "the file's")
    new = _size_of(config, wanted, new_grid, "the model's")
    flat = names.applied(edits.with_heads_of(shapes, init), flat)
    if new is not None and (edit := _resize(config, names.shapes_of(flat), wanted, old, new)):
        flat = names.applied(edit, flat)
    params = inspect_params(params=unflatten(dict(flat)), expected=unflatten(init))
    names.require_shapes(wanted, names.shapes_of(arrays(params)))
    params = unflatten(_cast_like(arrays(params), init, pretrained_path))
    params = stack_blocks(params) if stacked else params
    if is_variables(init_params):
        variables = as_variables(params, config)
        return {name: variables[name] for name in init_params}
    return params


def _resize(config: Config, shapes: Any, wanted: Any, old: Size | None, new: Size) -> Any:
    same = all(tuple(wanted.get(n, ())) == tuple(s) for n, s in shapes.items())
    if same and (old is None or old == new):
        return None
    return edits.resized(config, shapes, old, new)


def _size_of(config: Config, shapes: Any, grid: Grid | None, whose: str) -> Size | None:
    """(height, width) in pixels that tensors are for: by the given grid, else of a square."""
    family = get(config)
    if family.stride is not None and family.num_patches is not None:
        try:
            patches = family.num_patches(config, shapes)
        except KeyError:
            return None  # names differ: said later, with all of them
        stride = family.stride(config)
        if not patches:
            return None
        rows, columns = grid or square(patches, whose)
        if rows * columns != patches:
            raise UserError(f"grid {grid} does not hold {patches} patches")
        return rows * stride[0], columns * stride[1]
    return names.image_size_of(config, shapes)


def _cast_like(params: Mapping[str, Any], like: Mapping[str, Any], path: Path) -> dict[str, Any]:
    dtypes = {name: np.dtype(x.dtype) for name, x in like.items()}
    for old, new in sorted({(x.dtype.name, dtypes[n].name) for n, x in params.items()}):
        if old != new:
            log.warning("%s: parameters of type %s become %s, the model's", path, old, new)
    return {
        name: x if x.dtype == dtypes[name] else x.astype(dtypes[name]) for name, x in params.items()
    }


# --- PyTorch --------------------------------------------------------------------------------------


def from_torch(state_dict: Mapping[str, Any], model: Any, layout: str = "timm") -> dict[str, Any]:
    """Variables of `model` from another library's state dict; torch is not needed.

    Args:
      state_dict: Arrays or torch tensors by name. The number of classes and the grid are the
        arrays' own, so heads and sizes other than the model's default work.
      model: A registered name, a ModelSpec, a config mapping, or a linen module.
      layout: Whose names these are: 'timm', 'hf', or another that the model's family has;
        'official' are those of the paper's own repository, where that is PyTorch's.

    Returns:
      {'params': nested dict of NumPy arrays of their own memory}, dtypes as given, and
      'batch_stats' where the model has running statistics; blocks are stacked if the model scans
      over them.

    Raises:
      UserError: for missing or unexpected names (both sides listed) or wrong shapes.
    """
    config = config_of(model)
    layout = names.torch_layout(config, layout)
    spelled = names.respelled(state_dict, config, layout)
    theirs = {name: to_numpy(state_dict[old]) for name, old in spelled.items()}
    ours = names.imported(theirs, config, layout)
    ours, _ = names.completed(ours, config, layout, names.default_size(config))
    flat = {name: np.array(x, order="C") for name, x in ours.items()}
    names.check(config, names.shapes_of(flat))
    variables = as_variables(unflatten(flat), config)
    variables["params"] = as_scanned(variables["params"], config)
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
    config = config_of(model)
    ours = {n: to_numpy(x) for n, x in arrays(unstack_blocks(named(variables))).items()}
    names.check(config, names.shapes_of(ours))
    layout = names.torch_layout(config, layout)
    theirs = names.exported(names.reduced(ours, config, layout, None)[0], config, layout)
    return {name: np.array(x, order="C") for name, x in theirs.items()}


def is_scanned(config: Config) -> bool:
    """Whether the model holds its blocks stacked."""
    return bool((config.get("transformer") or config).get("scan", False))


def as_scanned(params: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Parameters with the blocks stacked that the model scans, in each tower as that does."""
    if is_scanned(config):
        return stack_blocks(params)
    parts = get(config).parts(config)
    return {**params, **{at: as_scanned(params[at], part) for at, part in parts.items()}}


def unscanned(config: Config) -> dict[str, Any]:
    """The config of the same model with its blocks one by one."""
    if config.get("transformer"):
        return {**config, "transformer": {**config["transformer"], "scan": False}}
    return {**config, "scan": False} if is_scanned(config) else dict(config)


def drop_pre_logits(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without `pre_logits` and without the head that reads it: features only.

    The head was trained on the output of `pre_logits`; on anything else its logits mean nothing.
    """
    edit = edits.without_pre_logits(names.shapes_of(arrays(params)))
    if edit is None:
        return dict(params)
    return unflatten({n: x for n, x in arrays(params).items() if n not in edit.dropped})


def save_timm(
    path: Path,
    params: Mapping[str, Any],
    model: Any,
    *,
    image_size: Size | None = None,
    preprocess: Preprocess | None = None,
    class_names: list[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes safetensors under timm's names, with the arguments that build the model in timm.

    Args:
      path: Replaced as a whole, or left as it was.
      params: Nested dict in linen names, the parameters or Flax's dict of collections, blocks
        stacked or not.
      model: A registered name, a ModelSpec, a config mapping, or a linen module.
      image_size: (height, width) in pixels; needed when the grid is not square.
      preprocess: How images are prepared; by default the model's own, else the official way.
      class_names: In the order of the logits; those of ImageNet need not be given.
      metadata: Further text for the header.

    Raises:
      UserError: if timm cannot hold the model or the parameters are not the model's.
    """
    state = to_torch({"params": params} if not is_variables(params) else params, model, "timm")
    shapes = names.shapes_of(arrays(unstack_blocks(named(params))))
    config = names.with_channels(config_of(model), shapes)
    size = image_size
    if size is None and preprocess is not None and not names.tells_image_size(config, shapes):
        size = preprocess.height_width
    size = size or names.image_size_of(config, shapes)
    if size is None:
        raise UserError("the model's patches form no square; give the image size")
    spec = resolve(model) if isinstance(model, str) else model
    if preprocess is None:
        preprocess = spec.preprocess if isinstance(spec, ModelSpec) else Preprocess(size=size)
    preprocess = preprocess.for_channels(names.channels_of(config, shapes))
    num_classes = names.num_classes_of(shapes)
    name = spec.name if isinstance(spec, ModelSpec) else str(config.get("model_name") or "custom")
    known = Model(
        name,
        {k: v for k, v in config.items() if k != "dtype"},
        num_classes,
        size,
        preprocess,
        class_names or known_class_names(num_classes),
    )
    described = beside.timm_description(
        config, num_classes=num_classes, image_size=size, preprocess=preprocess
    )
    fields = {"format": "pt", recorded.TIMM: json.dumps(described)}
    fields[recorded.OURS] = json.dumps(known.metadata(), default=str)
    write_safetensors(path, state, {**fields, **(metadata or {})})

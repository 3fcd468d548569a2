"""What a checkpoint is, without reading more of it than its head."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from vit_jax.checkpoint import describe, infer, recorded, zoo
from vit_jax.checkpoint.files.archive import Spec
from vit_jax.checkpoint.source import Source, open_source
from vit_jax.checkpoint.tables.family import Size
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import is_google
from vit_jax.families.resize import Grid
from vit_jax.variables import is_statistic

# For files without position embeddings, which are read for any size.
_ANY_SIZE = (224, 224)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What `identify` found.

    Attributes:
      path: As given.
      format: 'npz', 'safetensors', 'torch', 'flax', 'orbax' or 'hf'.
      layout: 'linen', 'released', 'big_vision', 'timm' or 'hf'.
      models: Registered models of these sizes; empty for a size of its own.
      image_size: (height, width) in pixels that the tensors are for, as far as they tell.
      ambiguous: What the file leaves open, in words.
      config: Constructor fields; None if the tensors are no known family's.
      num_params: Numbers held in parameters.
      dtypes: dtype -> number of parameter tensors.
      grid: (rows, columns) of patches; None where it is neither square nor recorded.
      num_classes: 0 means that there is no head.
      head_is_zero: Whether every number of the head is zero; None without a head.
      preprocess: As recorded in the file; None if it is not.
      class_names: As recorded in the file; None if they are not.
      skipped: Tensors that are no parameters, such as an optimizer's.
      notes: What a reader should know.
      tensors: Shape and dtype of every parameter, linen names.
      metadata: Text stored beside the tensors.
    """

    path: str
    format: str
    layout: str
    models: tuple[str, ...]
    ambiguous: tuple[str, ...]
    config: dict[str, Any] | None
    num_params: int
    dtypes: dict[str, int]
    grid: Grid | None
    image_size: Size | None
    num_classes: int
    head_is_zero: bool | None
    preprocess: Preprocess | None
    class_names: list[str] | None
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    tensors: dict[str, Spec]
    metadata: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        fields = dict(vars(self))
        fields["preprocess"] = self.preprocess and self.preprocess.to_dict()
        fields["tensors"] = {
            name: {"shape": list(spec.shape), "dtype": spec.dtype.name}
            for name, spec in self.tensors.items()
        }
        return fields


def identify(path: str | os.PathLike, model: Any = None) -> Identity:
    """Recognises a checkpoint by its contents.

    Args:
      path: As for `open_source`.
      model: As for `open_source`, for what the file leaves open.

    Raises:
      UserError: for a file that is unreadable, damaged or of no known format.
    """
    with open_source(path, model, _ANY_SIZE) as source:
        specs = source.specs()
        shapes = {name: spec.shape for name, spec in specs.items()}
        config = source.config
        dtypes: dict[str, int] = {}
        for spec in specs.values():
            dtypes[spec.dtype.name] = dtypes.get(spec.dtype.name, 0) + 1
        return Identity(
            path=str(path),
            format=source.format,
            layout=source.layout,
            models=() if config is None else fitting_models(config),
            ambiguous=_ambiguous(source),
            config=config,
            num_params=sum(
                math.prod(shape) for name, shape in shapes.items() if not is_statistic(name)
            ),
            dtypes=dtypes,
            grid=grid_of(source, shapes) if config and source.has_positions else None,
            image_size=image_size_of(source, shapes) if config and source.has_positions else None,
            num_classes=describe.num_classes(shapes),
            head_is_zero=_head_is_zero(source, shapes),
            preprocess=recorded.preprocess(source),
            class_names=recorded.class_names(source),
            skipped=tuple(source.skipped),
            notes=tuple(source.notes),
            tensors=specs,
            metadata=source.archive.metadata,
        )


def fitting_models(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The registered models of these sizes; of the original's, official names."""
    if not is_google(config):
        name = config.get("model_name")
        names = zoo.fitting_models(config)
        return (name,) if name in names else names
    transformer = config.get("transformer")
    heads = transformer is None or transformer["num_heads"] is not None
    return tuple(s.name for s in infer.official_models() if infer.fits(s, config, heads=heads))


def grid_of(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> Grid | None:
    """(rows, columns) of patches: as recorded, else square; None if it is neither.

    None too for a family that does not think in one grid, see `zoo.image_size_of`.
    """
    assert source.config is not None
    if not is_google(source.config):
        return None
    patches = describe.num_patches(source.config, shapes)
    if (size := recorded.image_size(source)) is not None:
        stride = describe.downsampling(source.config)
        grid = size[0] // stride, size[1] // stride
        if math.prod(grid) == patches:
            return grid
    side = math.isqrt(patches)
    return (side, side) if side and side * side == patches else None


def image_size_of(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> Size | None:
    """(height, width) in pixels: as recorded, else of square images; None if it is neither."""
    assert source.config is not None
    if is_google(source.config):
        grid, stride = grid_of(source, shapes), describe.downsampling(source.config)
        return grid and (grid[0] * stride, grid[1] * stride)
    if (size := recorded.image_size(source)) is not None:
        return size
    try:
        return zoo.image_size_of(source.config, shapes)
    except UserError:
        return None


def _ambiguous(source: Source) -> tuple[str, ...]:
    found = []
    config = source.config or {}
    if config.get("transformer") and config["transformer"]["num_heads"] is None:
        found.append(
            "the number of attention heads: PyTorch files do not hold it, and no registered model "
            "has these sizes"
        )
    if config.get("classifier") == "gap":
        found.append("without a class token, tokens may be averaged ('gap') or kept ('unpooled')")
    if not source.has_positions:
        found.append("the image size: the model computes its position embeddings (sincos2d)")
    return tuple(found)


def _head_is_zero(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
    kernels = [n for n in shapes if n.startswith("head") and n.endswith("/kernel")]
    if not kernels:
        return None
    # A head does not depend on the number of attention heads.
    params = source.to_linen(source.view)
    biases = [n.removesuffix("kernel") + "bias" for n in kernels]
    return not any(params[n].any() for n in (*biases, *kernels) if n in shapes)

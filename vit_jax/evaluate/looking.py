"""What a loaded model's attention does on pictures: weights, and the grid that they lie on.

For models that think in one grid of patches: the family says how far apart these are.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.checkpoint import io
from vit_jax.errors import UserError
from vit_jax.evaluate import attention
from vit_jax.families.family import Config
from vit_jax.families.registry import get, require_images
from vit_jax.patches import PatchBatch, stacked
from vit_jax.tree import arrays

if TYPE_CHECKING:
    from vit_jax.loaded import Images, Loaded


@dataclasses.dataclass(frozen=True)
class Look:
    """One image and the attention that a model pays on it.

    Attributes:
      picture: What the model sees of it, uint8 [H, W, C].
      weights: By the path of each attention over all patches, in order of depth: [heads, Q, K]. A
        class token's and a probe's have Q = 1 where these ask alone.
      grid: Rows and columns of the patches, which are the last keys; those before them are class
        tokens and registers.
      stride: Pixels from one patch to the next, (height, width).
      has_class: Whether the first token is a class token.
    """

    picture: np.ndarray
    weights: dict[str, np.ndarray]
    grid: attention.Grid
    stride: tuple[int, int]
    has_class: bool

    @property
    def between_tokens(self) -> dict[str, np.ndarray]:
        """Those of `weights` in which all tokens ask, [heads, T, T]."""
        return {path: x for path, x in self.weights.items() if x.shape[-2] == x.shape[-1]}

    def query(self, asked: str | attention.Grid | None, weights: np.ndarray) -> Any:
        """The query to show of these weights: `asked`, or the class token, or else the mean.

        Raises:
          UserError: for a class token that there is none of, and a patch outside the grid.
        """
        prefix = weights.shape[-2] - self.grid[0] * self.grid[1]
        if isinstance(asked, tuple):
            if not (0 <= asked[0] < self.grid[0] and 0 <= asked[1] < self.grid[1]):
                raise UserError(
                    f"no patch {asked[0]},{asked[1]}: rows are 0 to {self.grid[0] - 1} and columns "
                    f"0 to {self.grid[1] - 1}"
                )
            if weights.shape[-2] == 1:
                raise UserError("one token asks alone in this layer: no patch does")
            return asked
        if asked == "class" and not self.has_class:
            raise UserError("the model has no class token; --query mean or --query ROW,COLUMN")
        alone = weights.shape[-2] == 1
        return "class" if asked != "mean" and (alone or (self.has_class and prefix > 0)) else "mean"

    def rollout(self, asked: str | attention.Grid | None = None) -> np.ndarray:
        """`attention.rollout` over all layers, of one query to each patch, [*grid]."""
        layers = list(self.between_tokens.values())
        if not layers:
            raise UserError("no layer in which all tokens ask: there is nothing to roll out")
        product = attention.rollout([x[None] for x in layers])[0]
        return attention.map_of(product, self.grid, self.query(asked, product))

    def distances(self) -> dict[str, np.ndarray]:
        """`attention.mean_distances` of each layer in which all tokens ask, [heads]."""
        return {
            path: attention.mean_distances(x[None], self.grid, self.stride)
            for path, x in self.between_tokens.items()
        }


def looks(model: "Loaded", images: "Images") -> Iterator[Look]:
    """A `Look` at each image; arguments and errors are those of `Loaded.features`.

    Raises:
      UserError: also for a family without one grid of patches, or without attention over it.
    """
    from vit_jax.loaded import listed

    config = tower(model)[1]
    stride = get(config).stride
    cut = get(config).flexible(config)
    if stride is None and cut is None:
        raise UserError(
            f"{model.name} has no one grid of patches over which attention could be drawn: models "
            f"of {get(config).title} attend within windows, between grids of several sizes or over "
            "a map. In Python vit_jax.evaluate.inside.look_inside gives their weights as they are"
        )
    run = _forward(model)
    for image in listed(images):
        prepared = model.prepare(image)
        weights = {path: np.asarray(x) for path, x in run(stacked([prepared])).items()}
        if isinstance(prepared, PatchBatch):
            assert cut is not None
            rows, columns = map(int, prepared.grid)
            grid, apart = (rows, columns), (cut[0], cut[0])
            used = rows * columns
            weights = {path: x[..., : min(used, x.shape[-2]), :used] for path, x in weights.items()}
            picture = model.decoded(image)
        else:
            assert stride is not None
            apart = stride(config)
            height, width = prepared.shape[:2]
            grid = (height // apart[0], width // apart[1])
            picture = _pixels(prepared, model)
        found = _over(weights, grid)
        if not found:
            raise UserError(f"{model.name} has no attention over all of its patches")
        yield Look(picture, found, grid, apart, _has_class(model))


def tower(model: "Loaded") -> tuple[str | None, Config]:
    """The branch of the tree that takes images, None for the whole of it, and its config."""
    config = model.weights.model.config
    for at, part in get(config).parts(config).items():
        if "images" in get(part).inputs:
            return at, part
    require_images(config, model.name)
    return None, config


def tensors(model: "Loaded") -> dict[str, np.ndarray]:
    """The parameters of what takes images, by our names, blocks one by one."""
    params = model.weights.params
    branch = tower(model)[0]
    return arrays(params[branch] if branch else params)


def _has_class(model: "Loaded") -> bool:
    return any(name.rpartition("/")[2] == "cls" for name in tensors(model))


def _forward(model: "Loaded") -> Callable[[Any], dict[str, Any]]:
    import jax

    from vit_jax.evaluate.inside import look_inside
    from vit_jax.models import from_config

    known, module = model.weights.model, model.module
    variables = model.weights.one_by_one()
    branch = tower(model)[0]
    if branch is None:
        module = from_config(io.unscanned(known.config), num_classes=known.num_classes)
    elif any(io.is_scanned(part) for part in get(known.config).parts(known.config).values()):
        raise UserError(f"{model.name} scans its blocks; vit_jax.load(…, part='img') can be seen")

    def weights(variables: Any, images: Any) -> Any:
        seen = (
            look_inside(module, variables, images)
            if branch is None
            else look_inside(module, variables, images=images)
        ).weights
        return type(seen)((k, x[0]) for k, x in seen.items() if x.ndim == 4 and len(x) == 1)

    return functools.partial(jax.jit(weights), variables)


def _over(weights: dict[str, np.ndarray], grid: attention.Grid) -> dict[str, np.ndarray]:
    """Those over all patches: of all tokens that the last layer has, or of the patches alone."""
    patches = grid[0] * grid[1]
    counts = [x.shape[-1] for x in weights.values() if x.shape[-1] >= patches]
    known = {patches, *counts[-1:]}
    return {
        path: x
        for path, x in weights.items()
        if x.shape[-1] in known and x.shape[-2] in (1, x.shape[-1])
    }


def _pixels(prepared: np.ndarray, model: "Loaded") -> np.ndarray:
    """A prepared image as a picture again, uint8."""
    way = model.preprocessing
    pixels = prepared * np.asarray(way.std) + np.asarray(way.mean)
    return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)

"""A model of recorded figures in ours: one compiled program for everything that is asked of it."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from zoo_golden import FOLDER, Golden

from vit_jax.checkpoint import from_torch, names, to_torch
from vit_jax.models import from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours
from vit_jax.tree import arrays
from vit_jax.variables import collections, named

FLOAT32_BAR = 1e-5
UNMOVED = 1e-12  # what rounding alone does to the outputs, relative to them


class Point(NamedTuple):
    """Where a figure is taken in our model.

    Attributes:
      path: Of a module; '' is the whole model.
      change: Makes of what the module gives what was recorded.
      before: Whether it is what the module gets that was recorded.
    """

    path: str
    change: Callable[[jax.Array], jax.Array] = lambda x: x
    before: bool = False


class Official:
    """One official model with the weights that its figures were made with.

    Attributes:
      golden: Its figures, weights and images.
      model: Ours.
      variables: The weights under our names, float32.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        figures: Mapping[str, str | Point],
        *,
        num_classes: int = 7,
        convolves: bool = False,
    ):
        """`figures` are recorded figures, and our modules that give them.

        Where it `convolves`, what is compiled in haste runs so slowly, once a tensor, that time to
        compile it better comes back.
        """
        self.name, self.config = name, dict(config)
        self.wanted = {key: x if isinstance(x, Point) else Point(x) for key, x in figures.items()}
        self.options = {"xla_backend_optimization_level": 1} if convolves else None
        self.golden = Golden(name)
        self.facts = json.loads((FOLDER / f"{name}.json").read_text())
        self.layout = names.torch_layout(self.config, "official")
        self.model = from_config(config, num_classes=num_classes)
        self.variables = self.read(self.golden.weights)

    def read(self, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return from_torch(weights, self.config, "official")

    @functools.cached_property
    def programs(self) -> dict[Any, Any]:
        """(variables, images) to the figures by name, for each type."""

        def forward(variables, images):
            return self.apply(variables, images, self.wanted, train=False)[0]

        wide = jax.jit(forward, compiler_options=self.options)
        return {np.float64: wide, np.float32: jax.jit(forward)}

    def apply(
        self, variables: Any, images: jax.Array, wanted: Mapping[str, Point], **how: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        """The figures by name, and what the model returns with these arguments of its call."""
        found = {}

        def keep(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if context.method_name == "__call__":
                path = "/".join(context.module.path)
                for figure, point in wanted.items():
                    if point.path == path:
                        x = args[0] if point.before else output
                        x = x[0] if isinstance(x, tuple) else x
                        found.setdefault(figure, point.change(x))
            return output

        with nn.intercept_methods(keep):
            output = self.model.apply(variables, images, **how)
        return found, output

    def compute(self, variables: Mapping[str, Any], dtype: Any = np.float64) -> dict[str, Any]:
        """The figures by name, of these weights and the recorded images."""
        with jax.enable_x64(dtype == np.float64):
            wide = jax.tree.map(lambda x: np.asarray(x, dtype), dict(variables))
            return jax.device_get(self.programs[dtype](wide, self.golden.images.astype(dtype)))

    @functools.cached_property
    def computed(self) -> dict[str, Any]:
        return self.compute(self.variables)

    def errors(self, found: Mapping[str, Any]) -> dict[str, float]:
        """How far each is from the official code's, in float64."""
        figures = {key: as_recorded(self.golden.figures[key], x) for key, x in found.items()}
        return {key: relative_error(as_tokens(x), figures[key]) for key, x in found.items()}

    def assert_same(self, dtype: Any = np.float64) -> None:
        """All figures within 1e-9 in float64, or within 1e-5 in float32."""
        wide = dtype == np.float64
        errors = self.errors(self.computed if wide else self.compute(self.variables, dtype))
        assert errors.keys() == self.wanted.keys()
        assert max(errors.values()) <= (FLOAT64_BAR if wide else FLOAT32_BAR), errors

    def logits_error(self, model: nn.Module | None = None, **fields: Any) -> float:
        """Of another model with these weights, or of ours with other fields, in float64."""
        model = model or self.model.clone(**fields)
        logits = trace_ours(model, self.variables, self.golden.images, [], np.float64).logits
        (figure,) = (key for key, point in self.wanted.items() if not point.path)
        return relative_error(logits, self.golden.figures[figure])

    def assert_names_both_ways(self) -> None:
        """Official to ours to official: every name, shape and bit."""
        again = to_torch(self.variables, self.config, "official")
        shapes = {key: shape for key, shape, _ in self.facts["state_dict"]}
        assert {key: list(x.shape) for key, x in again.items()} == shapes
        for key, x in self.golden.weights.items():  # without BatchNorm's numbers of batches
            np.testing.assert_array_equal(again[key], x, err_msg=key)
        assert all(x.dtype == np.float32 for x in arrays(named(self.variables)).values())

    def varied(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each of its tensors by the official name, and the weights with that one 1 % larger."""
        flat, statistics = arrays(named(self.variables)), names.statistics(self.config)
        for row in names.rows_for(self.golden.weights, self.config, self.layout):
            larger = {name: flat[name] * np.float32(1.01) for name in row.ours}
            yield row.theirs, collections({**flat, **larger}, statistics)

    def assert_every_tensor_matters(self) -> None:
        """A change of any tensor is seen in some logits, but for those known to change nothing."""
        logits = [key for key in self.wanted if key.startswith("logits")]
        unmoved = set()
        for name, variables in self.varied():
            found = self.compute(variables)
            shifts = (_shift(found[key], self.computed[key]) for key in logits)
            if max(shifts) <= UNMOVED:
                unmoved.add(name)
        assert unmoved == set(self.facts["insensitive"])


def _shift(found: np.ndarray, before: np.ndarray) -> float:
    return np.abs(found - before).max() / np.abs(before).max()


def as_tokens(x: np.ndarray) -> np.ndarray:
    """[N, H, W, C] -> [N, H * W, C]; others stay."""
    return x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim == 4 else x


def as_recorded(figure: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """A recorded figure in the axes of ours: a map's channels last, the first token alone."""
    if figure.ndim == 4:
        figure = as_tokens(np.moveaxis(figure, 1, -1))
    return figure[:, 0] if figure.ndim == 3 and ours.ndim == 2 else figure

"""What is exported: a pure function of arrays, with the shapes that it takes for any batch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.errors import UserError, chosen, some

if TYPE_CHECKING:
    from vit_jax.loaded import Loaded

# What a file may give, and which input it reads.
OUTPUTS = {"logits": "images", "features": "images", "tokens": "images", "text": "texts"}


@dataclasses.dataclass(frozen=True)
class Input:
    """An array that the exported program takes.

    Attributes:
      name: 'images' or 'texts'.
      axis: What the number of its examples is called in the file's shapes.
      shape: Of one example: [height, width, channels] or [length].
      dtype: 'float32' for prepared images, 'uint8' for raw pixels, 'int32' for texts.
      below: Of integers, the number that all are below.
    """

    name: str
    axis: str
    shape: tuple[int, ...]
    dtype: str
    below: int | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A pure function `function(variables, *arrays)`, to a tuple of arrays.

    Attributes:
      name: Of the model.
      inputs: In the order of the arrays.
      outputs: Their names, in the order in which they are returned: keys of `OUTPUTS`.
      function: It computes by plain operations, whatever the devices.
      variables: The weights.
      batch: The number of examples for which it is exported; None for any number.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    function: Callable[..., tuple[Any, ...]]
    variables: Any
    batch: int | None = None

    @property
    def closed(self) -> Callable[..., tuple[Any, ...]]:
        """The function of arrays alone, with the weights in it."""
        return functools.partial(self.function, self.variables)

    def specs(self) -> tuple[Any, ...]:
        """The shapes and types that the function is exported for; any batch is a symbol.

        Raises:
          UserError: for a model that can only be traced for a number.
        """
        import jax

        specs = self._specs(self.batch)
        try:
            jax.eval_shape(self.function, self.variables, *specs)
        except UserError:
            raise
        except Exception as error:  # JAX raises many types where a number is not known
            if self.batch is not None:
                raise
            jax.eval_shape(self.function, self.variables, *self._specs(1))
            first = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{self.name} cannot be exported for any number of examples at once ({first}); "
                "--batch N exports it for a number"
            ) from error
        return specs

    def _specs(self, batch: int | None) -> tuple[Any, ...]:
        import jax
        from jax import export

        axes = ", ".join(x.axis for x in self.inputs)
        counts = export.symbolic_shape(axes) if batch is None else (batch,) * len(self.inputs)
        return tuple(
            jax.ShapeDtypeStruct((count, *x.shape), np.dtype(x.dtype))
            for count, x in zip(counts, self.inputs, strict=True)
        )

    def examples(self, count: int) -> tuple[np.ndarray, ...]:
        """Random inputs of so many examples each, the same at every call."""
        rng = np.random.default_rng(count)
        return tuple(_random(x, count, rng) for x in self.inputs)

    def described(self) -> dict[str, Any]:
        """What a file takes and gives, as JSON: an axis that may have any length is a name."""
        return {
            "inputs": [
                {"name": x.name, "dtype": x.dtype, "shape": [self.batch or x.axis, *x.shape]}
                for x in self.inputs
            ],
            "outputs": list(self.outputs),
        }


def _random(x: Input, count: int, rng: np.random.Generator) -> np.ndarray:
    if x.below is not None:
        return rng.integers(0, x.below, (count, *x.shape)).astype(x.dtype)
    return rng.uniform(-1, 1, (count, *x.shape)).astype(x.dtype)


def program_of(
    loaded: "Loaded",
    what: Sequence[str] | None = None,
    *,
    raw: bool = False,
    batch: int | None = None,
) -> Program:
    """The function that a model is exported as.

    Args:
      loaded: The model.
      what: Keys of `OUTPUTS`. By default the logits; of a model without a head the features; of
        two towers the vectors of images and texts.
      raw: Whether it takes pixels, uint8 of the model's own image size, and normalises them.
      batch: The number of examples that it takes; None for any.

    Raises:
      UserError: for what the model does not have.
    """
    loaded = _plain(loaded)
    outputs = tuple(what or _usual(loaded))
    for output in outputs:
        chosen(output, OUTPUTS, "output")
    if len(set(outputs)) < len(outputs):
        raise UserError(f"each output is named once; got {some(outputs)}")
    if batch is not None and batch < 1:
        raise UserError(f"a batch has one example at least; got {batch}")
    read = {OUTPUTS[output] for output in outputs}
    makers = {"images": functools.partial(_images, raw=raw), "texts": _texts}
    inputs = tuple(make(loaded) for name, make in makers.items() if name in read)
    if raw and "images" not in read:
        raise UserError("raw pixels are of images, and the text tower takes none")
    return Program(
        loaded.name, inputs, outputs, _function(loaded, inputs, outputs), loaded.variables, batch
    )


def _plain(loaded: "Loaded") -> "Loaded":
    """The same model in float32 with its blocks one by one, which every format knows."""
    from vit_jax.families.registry import without_speed
    from vit_jax.loaded import of_weights

    known = loaded.weights.model
    known = dataclasses.replace(known, config=without_speed(known.config))
    return of_weights(dataclasses.replace(loaded.weights, model=known))


def scores_of(loaded: "Loaded") -> dict[str, Any]:
    """Of two towers, {'scores': 't' and 'b' of t · zimg · ztxtᵀ + b}; {} of other models."""
    if not _has_two_towers(loaded):
        return {}
    params = loaded.variables["params"]
    bias = {"b": float(params["b"][0])} if "b" in params else {}
    return {"scores": {"t": float(np.exp(params["t"][0])), **bias}}


def _has_two_towers(loaded: "Loaded") -> bool:
    from vit_jax.families.registry import get
    from vit_jax.two_towers import BOTH

    return get(loaded.weights.model.config).inputs == BOTH


def _usual(loaded: "Loaded") -> tuple[str, ...]:
    if _has_two_towers(loaded):
        return ("features", "text")
    return ("logits",) if loaded.weights.model.num_classes else ("features",)


def _images(loaded: "Loaded", raw: bool) -> Input:
    way = loaded.preprocessing
    shape = (*way.height_width, way.channels)
    return (
        Input("images", "n", shape, "uint8", 256) if raw else Input("images", "n", shape, "float32")
    )


def _texts(loaded: "Loaded") -> Input:
    from vit_jax.checkpoint import names

    known = loaded.weights.model
    loaded.forward("text")  # says of a model without texts that it takes none
    if known.text is None:
        raise UserError(
            f"nothing tells how long the texts of {known.name} are: name the registered model that "
            "it is, --model NAME"
        )
    size = names.vocabulary_size(known.config)
    return Input("texts", "m", (known.text.length,), "int32", size)


def _function(
    loaded: "Loaded", inputs: Sequence[Input], outputs: Sequence[str]
) -> Callable[..., tuple[Any, ...]]:
    from vit_jax.layers.attention.choice import attending

    forwards = [(loaded.forward(output), OUTPUTS[output]) for output in outputs]
    prepare = {x.name: _normalising(loaded) for x in inputs if x.dtype == "uint8"}

    # By what is chosen for CPUs, on which it is compared: no kernel of one kind of device.
    @attending("xla", platform="cpu")
    def function(variables: Any, *arrays: Any) -> tuple[Any, ...]:
        given: Mapping[str, Any] = {
            x.name: prepare.get(x.name, lambda a: a)(array)
            for x, array in zip(inputs, arrays, strict=True)
        }
        return tuple(forward(variables, given[name]) for forward, name in forwards)

    return function


def _normalising(loaded: "Loaded") -> Callable[[Any], Any]:
    """What maps pixels of [0, 255] to what the model wants, in float32."""
    from vit_jax.input_pipeline.transforms import in_pixels

    way = loaded.preprocessing
    mean, std = (in_pixels(x).reshape(1, 1, 1, -1) for x in (way.mean, way.std))
    return lambda pixels: (pixels.astype(np.float32) - mean) / std

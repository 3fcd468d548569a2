"""A trained model from wherever its weights lie: a run's workdir or a checkpoint file."""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.allow import Allow
from vit_jax.checkpoint import io, names, recorded
from vit_jax.checkpoint.facts import Model
from vit_jax.checkpoint.source import open_source, read_all
from vit_jax.checkpoint.stacked import stack_blocks
from vit_jax.errors import UserError
from vit_jax.tree import arrays
from vit_jax.variables import collections

if TYPE_CHECKING:
    import jax
    from flax import linen as nn

Path = str | os.PathLike[str]
_BATCH = 32  # images that `probabilities` passes through the model at once


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights, and what must be known to use them. No JAX.

    Attributes:
      model: The model that they are of.
      variables: {'params': …, 'batch_stats': …}, nested dicts of NumPy arrays in linen names,
        blocks unstacked; 'batch_stats' is {} for a model without running statistics.
    """

    model: Model
    variables: dict[str, Any]

    @property
    def params(self) -> dict[str, Any]:
        """The parameters alone."""
        return self.variables["params"]

    @property
    def num_params(self) -> int:
        """Numbers in parameters."""
        return sum(x.size for x in arrays(self.params).values())

    def for_model(self) -> dict[str, Any]:
        """The variables as the linen module takes them: float32, blocks stacked if it scans."""
        params = (io.is_scanned(self.model.config) and stack_blocks(self.params)) or self.params
        found = {"params": params, "batch_stats": self.variables["batch_stats"]}
        return {k: _as_float32(tree) for k, tree in found.items()}


def _as_float32(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _as_float32(part) for name, part in tree.items()}
    return np.asarray(tree, np.float32)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to classify images, computing in float32.

    Attributes:
      weights: Where everything about it came from.
      model: The linen module.
      variables: {'params': nested dict of float32 arrays, 'batch_stats': the same}.
    """

    weights: Weights
    model: "nn.Module"
    variables: dict[str, Any]

    @property
    def head_is_zero(self) -> bool:
        """Whether every number of the head is zero, so that all classes are equally likely."""
        return names.head_is_zero(arrays(self.weights.params))

    def read_image(self, path: Path) -> np.ndarray:
        """An image file as the model wants it: float32 [height, width, channels].

        Raises:
          UserError: for a file that is missing, unreadable or damaged.
        """
        from vit_jax.input_pipeline.records import read_image

        name = os.fspath(path)
        return self.preprocess(self.decode({"image": read_image(name), "name": name}))

    def decode(self, record: Mapping[str, Any]) -> np.ndarray:
        """The pixels of a stored example, uint8 [height, width, channels of the model].

        Raises:
          DamagedImage: for bytes that are no image, or only a part of one.
        """
        from vit_jax.input_pipeline.transforms import Decode

        return Decode(self.weights.model.preprocess.channels)(dict(record))["image"]

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded pixels as the model wants them, float32 [height, width, channels]."""
        from vit_jax.input_pipeline.transforms import preprocess_image

        return preprocess_image(pixels, self.weights.model.preprocess)

    def prepare(self, record: dict[str, Any], rng: Any = None) -> dict[str, Any]:
        """A stored example as the model wants it, with a one-hot label: a pipeline's transform."""
        from vit_jax.input_pipeline.transforms import OneHot

        image = self.preprocess(self.decode(record))
        return OneHot(self.weights.model.num_classes)({**record, "image": image})

    def dispatch(self, images: np.ndarray) -> "jax.Array":
        """`logits` that may still be computed when this returns."""
        return self._forward(self._placed, images)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """[N, height, width, channels] to float32 [N, num_classes]; compiles once a shape."""
        return np.asarray(self.dispatch(images))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Softmax of the logits, [N, num_classes], for any number of images."""
        from vit_jax.evaluate.predictions import softmax

        batch = min(len(images), _BATCH)
        padding = -len(images) % batch
        padded = np.concatenate([images, np.zeros((padding, *images.shape[1:]), images.dtype)])
        parts = [self.logits(padded[i : i + batch]) for i in range(0, len(padded), batch)]
        return softmax(np.concatenate(parts)[: len(images)])

    def class_name(self, index: int) -> str:
        names = self.weights.model.class_names
        return f"class {index}" if names is None else names[index]

    @functools.cached_property
    def _placed(self) -> Any:
        """The variables on the device, so that no call copies them again."""
        import jax

        return jax.device_put(self.variables)

    @functools.cached_property
    def _forward(self):
        import jax

        from vit_jax.layers.attention.choice import attending

        # On one device, by the attention that is chosen around the call.
        return jax.jit(attending()(functools.partial(self.model.apply, train=False)))


def load_model(path: Path, model: str | None = None, **how: Any) -> LoadedModel:
    """`load_weights`, as a model that classifies; its arguments are those of `load_weights`.

    Raises:
      UserError: as `load_weights`; and for a model without a head or with one for each token.
    """
    weights = load_weights(path, model, **how)
    known = weights.model
    if not known.num_classes:
        raise UserError(f"{str(path)!r} has no head: it gives features, and classifies nothing")
    if "unpooled" in known.config.get("classifier", ""):
        raise UserError(f"{known.name} classifies every token, not the image")

    from vit_jax.models import from_config

    module = from_config(known.config, num_classes=known.num_classes)
    return LoadedModel(weights, module, weights.for_model())


def load_weights(
    path: Path,
    model: str | None = None,
    *,
    part: str | None = None,
    image_size: tuple[int, int] | None = None,
    allow: Allow = (),
) -> Weights:
    """Reads the weights of a run or of a checkpoint.

    Args:
      path: As for `checkpoint.load`: the workdir of a training run, a file of any readable format
        or its address, a directory of Hugging Face, timm or Orbax.
      model: Registered name of the model in it. It may be left out where the model is recorded,
        and where names and shapes fit one registered model.
      part, image_size, allow: As for `checkpoint.load`.

    Raises:
      UserError: for a path that is missing or unreadable, a model that is unknown, not recognised
        or one of several, tensors that are not the model's, or an image size that nothing tells.
    """
    with open_source(path, model, image_size, part=part, allow=allow) as source:
        known = source.facts.model()
        source.facts.require_size(image_size)
        if not (source.facts.models or source.facts.recorded or model):
            raise UserError(
                f"{str(path)!r} holds the parameters of no registered model, and nothing in it "
                "says how it wants its images. Name the model that it should be, --model=NAME, to "
                "see where they differ; `vit-jax models` lists the names"
            )
        size = known.image_size
        if size is None:
            raise UserError(
                f"{str(path)!r}: its patches form no square, and nothing tells the height and the "
                "width of its images in pixels: give --image-size HEIGHTxWIDTH"
            )
        statistics = names.statistics(known.config)
        return Weights(known, collections(read_all(source), statistics))


def save_weights(path: Path, weights: Weights, to: str) -> None:
    """Writes a checkpoint that `load_weights` reads without being told the model.

    Args:
      path: Appears whole or not at all.
      weights: What to write. A .npz has no room for more than some 60 kB of class names, and
        is written without them.
      to: 'official' for the released .npz layout, 'timm' for .safetensors in timm's names.

    Raises:
      UserError: if the file cannot be written, or timm cannot hold the model.
    """
    known = weights.model
    metadata = {recorded.OURS: json.dumps(known.metadata())}
    if to == "official":
        fitting = recorded.fitting_npz(metadata)
        io.save(path, weights.variables, model=known.config, metadata=fitting)
    elif to == "timm":
        io.save_timm(
            path,
            weights.variables,
            known.config,
            image_size=known.image_size,
            preprocess=known.preprocess,
            metadata=metadata,
        )
    else:
        raise UserError(f"unknown format {to!r}; known: official, timm")

"""A trained model from wherever its weights lie: a run's workdir or a checkpoint file."""

import abc
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.allow import Allow
from vit_jax.checkpoint import io, names, recorded
from vit_jax.checkpoint.facts import Model
from vit_jax.checkpoint.source import open_source, read_all
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import require_images
from vit_jax.patches import stacked
from vit_jax.tree import arrays
from vit_jax.variables import collections

if TYPE_CHECKING:
    import jax
    from flax import linen as nn

Path = str | os.PathLike[str]
_BATCH = 32  # images that `in_batches` passes through a model at once


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
        found = self.one_by_one()
        found["params"] = io.as_scanned(found["params"], self.model.config)
        return found

    def one_by_one(self) -> dict[str, Any]:
        """The variables in float32, blocks one by one also if the model scans them."""
        return {k: _as_float32(tree) for k, tree in self.variables.items()}


def _as_float32(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _as_float32(part) for name, part in tree.items()}
    return np.asarray(tree, np.float32)


def in_batches(
    run: Callable[[Any], Any],
    images: Sequence[Any] | np.ndarray,
) -> np.ndarray:
    """What `run` gives for any number of images, of which it gets a few at once.

    Args:
      run: N images to an array [N, …]. The last batch is filled up, so that one program serves all.
      images: N prepared images, each made when its turn comes.
    """
    size, parts = min(len(images), _BATCH), []
    for start in range(0, len(images), size):
        batch = [images[i] for i in range(start, min(start + size, len(images)))]
        filled = batch + [batch[-1]] * (size - len(batch))
        parts.append(np.asarray(run(stacked(filled)))[: len(batch)])
    return np.concatenate(parts)


class ImageReader(abc.ABC):
    """Prepares images as a model wants them, and passes them through it."""

    @property
    @abc.abstractmethod
    def known(self) -> Model:
        """What is known of the model."""

    @property
    def preprocessing(self) -> Preprocess:
        """How the model wants its images."""
        return self.known.preprocess

    @abc.abstractmethod
    def dispatch(self, images: Any) -> "jax.Array":
        """A row for each prepared image of a batch, maybe still computed when this returns.

        It compiles once a shape.

        Args:
          images: [N, height, width, channels], or a `PatchBatch` for a model of variable size.
        """

    def read_image(self, path: Path) -> Any:
        """An image file as the model wants it, see `preprocess`.

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

        return Decode(self.preprocessing.channels)(dict(record))["image"]

    def preprocess(self, pixels: np.ndarray) -> Any:
        """Decoded pixels as the model wants them, float32 [height, width, channels].

        A model of variable size gets them in about their aspect ratio, as a `PatchBatch` without
        the axis N. `vit_jax.patches.stacked` makes a batch of such as of others.
        """
        from vit_jax.input_pipeline.patches import prepared

        return prepared(pixels, self.known.preprocess, self.known.flexible)


class Classifier(ImageReader):
    """An `ImageReader` whose rows are logits."""

    @property
    @abc.abstractmethod
    def num_classes(self) -> int:
        """Numbers in a row."""

    @property
    @abc.abstractmethod
    def class_names(self) -> Sequence[str] | None:
        """In the order of the logits; None where nobody knows them."""

    def class_name(self, index: int) -> str:
        return f"class {index}" if self.class_names is None else self.class_names[index]

    def prepare(self, record: dict[str, Any], rng: Any = None) -> dict[str, Any]:
        """A stored example as the model wants it, with a one-hot label: a pipeline's transform."""
        from vit_jax.input_pipeline.transforms import OneHot

        image = self.preprocess(self.decode(record))
        return OneHot(self.num_classes)({**record, "image": image})

    def logits(self, images: Any) -> np.ndarray:
        """Images as `dispatch` takes them to float32 [N, num_classes]; compiles once a shape."""
        return np.asarray(self.dispatch(images))

    def probabilities(self, images: Any) -> np.ndarray:
        """[N, num_classes], for any number of images: see `probabilities_of`."""
        return self.probabilities_of(in_batches(self.logits, images))

    def probabilities_of(self, logits: np.ndarray) -> np.ndarray:
        """Logits [..., num_classes] to probabilities in float64: their softmax, as trained."""
        from vit_jax.evaluate.predictions import softmax

        return softmax(logits)


@dataclasses.dataclass(frozen=True)
class LoadedModel(Classifier):
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
    def known(self) -> Model:
        return self.weights.model

    @property
    def num_classes(self) -> int:
        return self.weights.model.num_classes

    @property
    def class_names(self) -> Sequence[str] | None:
        return self.weights.model.class_names

    @property
    def head_is_zero(self) -> bool:
        """Whether every number of the head is zero, so that all classes are equally likely."""
        return names.head_is_zero(arrays(self.weights.params))

    def dispatch(self, images: Any) -> "jax.Array":
        """`logits` that may still be computed when this returns."""
        return self._forward(self.placed, images)

    @functools.cached_property
    def placed(self) -> Any:
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
    require_images(known.config, repr(str(path)))
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
      part: As for `checkpoint.load`.
      image_size: As for `checkpoint.load`.
      allow: As for `checkpoint.load`.

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

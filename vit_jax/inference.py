"""A trained model from wherever its weights lie: a run's workdir or a checkpoint file."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.checkpoint import describe, official, recorded, timm_file
from vit_jax.checkpoint.identify import fitting_models, image_size_of
from vit_jax.checkpoint.shapes import Shape
from vit_jax.checkpoint.source import Source, open_source
from vit_jax.checkpoint.stacked import stack_blocks
from vit_jax.checkpoint.tree import arrays, unflatten
from vit_jax.class_names import class_names
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import ModelSpec, is_google, resolve
from vit_jax.variables import collections, is_statistic

if TYPE_CHECKING:
    from flax import linen as nn

Path = str | os.PathLike[str]
_BATCH = 32  # images that `probabilities` passes through the model at once


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters, and what must be known to use them. No JAX.

    Attributes:
      name: Of the model.
      config: Constructor fields of the model.
      params: Nested dict of NumPy arrays in linen names, blocks unstacked; running statistics
        among them, see `vit_jax.variables`.
      preprocess: How the model wants its images.
      class_names: In the order of the logits; None where nobody knows them.
    """

    name: str
    config: Mapping[str, Any]
    params: dict[str, Any]
    preprocess: Preprocess
    class_names: list[str] | None

    @property
    def num_classes(self) -> int:
        return describe.num_classes(describe.shapes_of(arrays(self.params)))

    @property
    def num_params(self) -> int:
        return sum(x.size for n, x in arrays(self.params).items() if not is_statistic(n))


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

    def read_image(self, path: Path) -> np.ndarray:
        """An image file as the model wants it: float32 [size, size, 3].

        Raises:
          UserError: for a file that is missing, unreadable or damaged.
        """
        from vit_jax.input_pipeline.transforms import decode_image, preprocess_image

        try:
            encoded = pathlib.Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read image {str(path)!r}: {error.strerror}") from error
        return preprocess_image(decode_image(encoded, str(path)), self.weights.preprocess)

    def prepare(self, record: dict[str, Any], rng: Any = None) -> dict[str, Any]:
        """A stored example as the model wants it, with a one-hot label: a pipeline's transform."""
        from vit_jax.input_pipeline.transforms import Decode, OneHot, preprocess_image

        image = preprocess_image(Decode()(record)["image"], self.weights.preprocess)
        return OneHot(self.weights.num_classes)({**record, "image": image})

    def logits(self, images: np.ndarray) -> np.ndarray:
        """[N, size, size, 3] to float32 [N, num_classes]; compiles once a shape."""
        return np.asarray(self._forward(self.variables, images))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Softmax of the logits, [N, num_classes], for any number of images."""
        batch = min(len(images), _BATCH)
        padding = -len(images) % batch
        padded = np.concatenate([images, np.zeros((padding, *images.shape[1:]), images.dtype)])
        parts = [self.logits(padded[i : i + batch]) for i in range(0, len(padded), batch)]
        logits = np.concatenate(parts)[: len(images)].astype(np.float64)
        exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exp / exp.sum(axis=-1, keepdims=True)

    def class_name(self, index: int) -> str:
        names = self.weights.class_names
        return f"class {index}" if names is None else names[index]

    @functools.cached_property
    def _forward(self):
        import jax

        from vit_jax.layers.attention.choice import attending

        # On one device, by the attention that is chosen around the call.
        return jax.jit(attending()(functools.partial(self.model.apply, train=False)))


def load_model(path: Path, model: str | None = None) -> LoadedModel:
    """`load_weights`, as a model that classifies.

    Raises:
      UserError: as `load_weights`; and for a model without a head or with one for each token.
    """
    weights = load_weights(path, model)
    if not weights.num_classes:
        raise UserError(f"{str(path)!r} has no head: it gives features, and classifies nothing")
    if "unpooled" in weights.config.get("classifier", ""):
        raise UserError(f"{weights.name} classifies every token, not the image")

    import jax

    from vit_jax.models import from_config

    params = jax.tree.map(lambda x: np.asarray(x, np.float32), weights.params)
    if describe.is_scanned(weights.config):
        params = stack_blocks(params)
    module = from_config(weights.config, num_classes=weights.num_classes)
    return LoadedModel(weights, module, collections(params))


def load_weights(path: Path, model: str | None = None) -> Weights:
    """Reads the weights of a run or of a checkpoint.

    Args:
      path: As for `checkpoint.load`: the workdir of a training run, a file of any readable format
        or its address, a Hugging Face or Orbax directory.
      model: Registered name of the model in it. It may be left out where the model is recorded,
        and for every registered model, which names and shapes tell.

    Raises:
      UserError: for a path that is missing or unreadable, a model that is unknown or not
        recognised, or tensors that are not the model's.
    """
    with open_source(path, model) as source:
        weights = described(source, model)
        params = {name: np.array(x, order="C") for name, x in source.params().items()}
        return dataclasses.replace(weights, params=unflatten(params))


def described(source: Source, model: str | None = None) -> Weights:
    """What is known of the model in a checkpoint, its tensors yet unread.

    Raises:
      UserError: for a model that is neither recorded nor registered, or whose images are not
        square.
    """
    config, spec = _config(source, model)
    shapes = {name: s.shape for name, s in source.specs().items()}
    size = _size(source, shapes)
    preprocess = recorded.preprocess(source) or (spec.preprocess if spec else Preprocess())
    num_classes = describe.num_classes(shapes)
    names = recorded.class_names(source)
    return Weights(
        name=recorded.model_name(source) or (spec.name if spec else source.archive.path.stem),
        config=config,
        params={},
        preprocess=dataclasses.replace(preprocess, size=size),
        class_names=names if names and len(names) == num_classes else class_names(num_classes),
    )


def _config(source: Source, model: str | None) -> tuple[Mapping[str, Any], ModelSpec | None]:
    """Constructor fields, and the registered model that they are of, if any."""
    if source.config is None:
        raise UserError(f"{str(source.archive.path)!r}: {'; '.join(source.notes)}")
    name = model or next(iter(fitting_models(source.config)), None)
    spec = resolve(name) if name is not None else None
    if (config := recorded.config(source)) is not None:
        return config, spec
    if spec is None:
        raise UserError(
            f"{str(source.archive.path)!r} holds the parameters of no registered model. Name the "
            "model that it should be, --model=NAME, to see where they differ; `vit-jax models` "
            "lists the names"
        )
    if not is_google(source.config):
        return source.config, spec
    # A file pretrained on ImageNet-21k has a layer before the head, a fine-tuned one not.
    own = ("representation_size", "classifier")
    found = {field: source.config[field] for field in own if field in source.config}
    return spec.config.to_dict() | found, spec


def _size(source: Source, shapes: Mapping[str, Shape]) -> int:
    """Height and width in pixels of the model's images."""
    size = image_size_of(source, shapes)
    if size is None or size[0] != size[1]:
        raise UserError(
            f"{str(source.archive.path)!r}: its images are not square, as images here are"
        )
    return size[0]


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
    fields = recorded.described(
        weights.name, weights.config, weights.preprocess, weights.class_names
    )
    metadata = {recorded.OURS: json.dumps(fields)}
    if to == "official":
        official.save(path, weights.params, metadata=recorded.fitting_npz(metadata))
    elif to == "timm":
        timm_file.save_timm(
            path,
            weights.params,
            weights.config,
            preprocess=weights.preprocess,
            metadata=metadata,
        )
    else:
        raise UserError(f"unknown format {to!r}; known: official, timm")

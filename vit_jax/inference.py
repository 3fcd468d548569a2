"""A trained model from wherever its weights lie: a run's workdir or a checkpoint file."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.checkpoint import describe, official, timm_file, torch_names
from vit_jax.checkpoint.fetch import fetch
from vit_jax.checkpoint.formats import open_archive
from vit_jax.checkpoint.rules import require_names
from vit_jax.checkpoint.scan import stack_blocks, unstack_blocks
from vit_jax.checkpoint.shapes import Shape, check_shapes, param_shapes
from vit_jax.checkpoint.tree import arrays
from vit_jax.class_names import class_names
from vit_jax.errors import UserError
from vit_jax.models.preprocess import Preprocess
from vit_jax.models.registry import ModelSpec, family_of, registered, resolve

if TYPE_CHECKING:
    from flax import linen as nn

Path = str | os.PathLike[str]
# Config -> nested parameters. timm's names need the config to be read, official ones do not.
Reader = Callable[[Mapping[str, Any]], dict[str, Any]]

_METADATA = "vit_jax"  # key in a file's metadata under which the model is described
_NPZ_METADATA = 65_535  # bytes that an npz file can carry
_BATCH = 32  # images that `probabilities` passes through the model at once


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters, and what must be known to use them. No JAX.

    Attributes:
      name: Of the model.
      config: Constructor fields of the model.
      params: Nested dict of NumPy arrays in linen names, blocks unstacked.
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
        return sum(x.size for x in arrays(self.params).values())


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to classify images, computing in float32.

    Attributes:
      weights: Where everything about it came from.
      model: The linen module.
      variables: {'params': nested dict of float32 arrays}.
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

        return jax.jit(functools.partial(self.model.apply, train=False))


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
    return LoadedModel(weights, module, {"params": params})


def load_weights(path: Path, model: str | None = None) -> Weights:
    """Reads the weights of a run or of a checkpoint file.

    Args:
      path: The workdir of a training run, an official-style .npz, or a state dict in timm's
        names (.safetensors, .pth); a file also by its address (`https://`, `gs://`).
      model: Registered name of the model in a file. It may be left out for a file that
        `save_weights` wrote, and for the parameters of any registered model, which are recognised
        by their names and shapes.

    Raises:
      UserError: for a path that is missing or unreadable, a model that is unknown or not
        recognised, or tensors that are not the model's.
    """
    path = fetch(path)
    if path.is_dir():
        if model is not None:
            raise UserError(f"{str(path)!r} is a run, which knows its model: leave --model out")
        return _from_run(path)
    if not path.exists():
        raise UserError(
            f"no such file or directory {str(path)!r}; expected the workdir of a run or a "
            "checkpoint (.npz, .safetensors)"
        )
    return _from_file(path, None if model is None else resolve(model))


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
    metadata = {_METADATA: _description(weights)}
    if to == "official":
        if len(json.dumps(metadata)) > _NPZ_METADATA:  # thousands of classes: do without names
            metadata = {_METADATA: _description(dataclasses.replace(weights, class_names=None))}
        official.save(path, weights.params, metadata=metadata)
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


def _from_run(workdir: pathlib.Path) -> Weights:
    from vit_jax.train import run_info

    info = run_info.load(workdir)  # before the import of Orbax, which takes a second
    from vit_jax.train.checkpointing import load_params

    params = unstack_blocks(load_params(workdir))
    name = info.model.get("model_name") or workdir.name
    return Weights(name, info.model, params, info.preprocess, info.class_names)


def _from_file(path: pathlib.Path, spec: ModelSpec | None) -> Weights:
    with open_archive(path) as archive:
        metadata, is_official = archive.metadata, archive.format == "npz"
        state_dict = {} if is_official else dict(archive)
    official_params = official.load(path) if is_official else None

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        if official_params is not None:
            return official_params
        return unstack_blocks(torch_names.from_torch(state_dict, config)["params"])

    if spec is not None:
        return _fitted(spec, read, path)
    if _METADATA in metadata:
        return _described(metadata[_METADATA], read, path)
    return recognise(read, path)


def recognise(read: Reader, path: Path) -> Weights:
    """The file as the first registered model that it fits; UserError if it fits none."""
    for spec in registered().values():
        with contextlib.suppress(UserError):
            return _fitted(spec, read, path)
    raise UserError(
        f"{str(path)!r} holds the parameters of no registered model. Name the model that it "
        "should be, --model=NAME, to see where they differ; `vit-jax models` lists the names"
    )


def _fitted(spec: ModelSpec, read: Reader, path: Path) -> Weights:
    """The file as a registered model, with any number of classes and at any square size."""
    config = spec.config.to_dict()
    try:
        params = read(config)
        shapes = describe.shapes_of(arrays(params))
        config = _with_representation(config, shapes)
        _require_fit(config, params, shapes)
        size, _ = timm_file.square_image_size(config, shapes)
    except UserError as error:
        raise UserError(f"{str(path)!r} does not hold a {spec.name}: {error}") from error
    preprocess = dataclasses.replace(spec.preprocess, size=size)
    names = class_names(describe.num_classes(shapes))
    return Weights(spec.name, config, params, preprocess, names)


def _require_fit(
    config: Mapping[str, Any], params: dict[str, Any], shapes: Mapping[str, Shape]
) -> None:
    """Raises UserError unless these are this model's parameters, for some head and grid."""
    try:
        num_patches = describe.num_patches(config, shapes)
    except (KeyError, IndexError):
        num_patches = 0  # another family's, or damaged: the names or shapes below will differ
    expected = param_shapes(
        config, num_classes=describe.num_classes(shapes), num_patches=num_patches
    )
    require_names(set(expected), set(shapes), "parameters")
    check_shapes(expected, arrays(params))


def _with_representation(config: dict[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Files pretrained on ImageNet-21k have a layer before the head, the fine-tuned ones not."""
    if "pre_logits/bias" in shapes and family_of(config) == "vit":
        config["representation_size"] = shapes["pre_logits/bias"][0]
    return config


def _description(weights: Weights) -> str:
    names = weights.class_names
    known = names is None or names == class_names(weights.num_classes)
    return json.dumps(
        {
            "name": weights.name,
            "config": dict(weights.config),
            "preprocess": weights.preprocess.to_dict(),
            "class_names": None if known else names,
        }
    )


def _described(description: str, read: Reader, path: Path) -> Weights:
    """The inverse of `_description`."""
    try:
        fields = json.loads(description)
        name, config, names = fields["name"], fields["config"], fields["class_names"]
        preprocess = Preprocess.from_dict(fields["preprocess"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{str(path)!r} describes no model of ours: {error!r}") from error
    params = read(config)
    shapes = describe.shapes_of(arrays(params))
    _require_fit(config, params, shapes)
    names = names or class_names(describe.num_classes(shapes))
    return Weights(name, config, params, preprocess, names)

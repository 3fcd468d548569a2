"""Features of a frozen model over a dataset, for the probes of `vit_jax.evaluate.fewshot`."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax import inference
from vit_jax.errors import UserError
from vit_jax.evaluate.fewshot import Examples
from vit_jax.families.family import is_head
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import require_images
from vit_jax.input_pipeline.patches import prepared
from vit_jax.input_pipeline.records import Source, Subset
from vit_jax.input_pipeline.transforms import Decode

# The number of images that a device passes through the model at once. It is one number for runs
# and for commands, so that both find the same features to the last bit.
ROWS = 16


def feature_model(config: Mapping[str, Any]) -> Any:
    """The linen module without its head, computing in float32.

    Args:
      config: The constructor fields of the model.

    Raises:
      UserError: for a model that gives features for every token instead of the image, and for one
        that does not take images alone.
    """
    from vit_jax.models import from_config

    require_images(config, "the model")
    if "unpooled" in config.get("classifier", ""):
        raise UserError("the model has features for every token, not for the image")
    return from_config({**config, "dtype": np.dtype(np.float32)}, num_classes=0)


def make_feature_step(model: Any, shards: int = 1) -> Callable[[Any, Any], Any]:
    """Returns `features(variables, images)`: images [N, H, W, C] to features [N, D].

    The features of an image do not depend on the batch, nor on the number of devices that split it.

    Args:
      model: What `feature_model` returns.
      shards: The number of devices that split the batch.
    """
    from vit_jax.train.batch_parts import in_parts

    def features(variables: Any, images: Any) -> Any:
        def of_part(part: Any) -> tuple[Any, Any]:
            return (), model.apply(variables, part, train=False)

        return in_parts(of_part, images, shards, ROWS)[1]

    return features


@dataclasses.dataclass(frozen=True)
class Prepare:
    """A pipeline's transform that decodes and preprocesses a stored example.

    Attributes:
      preprocess, flexible: As for `input_pipeline.patches.prepared`.

    Raises:
      UserError: from a call, for an example with several labels.
    """

    preprocess: Preprocess
    flexible: tuple[int, int] | None = None

    def __call__(self, record: dict[str, Any], rng: Any = None) -> dict[str, Any]:
        label = np.int32(_label(record))
        pixels = Decode(self.preprocess.channels)(record)["image"]
        return {"image": prepared(pixels, self.preprocess, self.flexible), "label": label}


class FeatureModel:
    """A model without its head, which turns images into the features that the head would get.

    It computes in float32.

    Raises:
      UserError: for a model that gives features for every token instead of the image.
    """

    def __init__(self, weights: inference.Weights):
        import jax

        from vit_jax.layers.attention.choice import attending

        known = weights.model
        step = make_feature_step(feature_model(known.config))
        self.prepare = Prepare(known.preprocess, known.flexible)
        self._variables = jax.device_put(without_head(weights.for_model()))
        # The model runs on one device, with the attention that is chosen around the call.
        self._forward = jax.jit(attending()(step))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: str | None = None, **how: Any
    ) -> "FeatureModel":
        """The model of a run or a checkpoint; arguments and errors of `inference.load_weights`."""
        return cls(inference.load_weights(path, model, **how))

    def __call__(self, images: Any) -> np.ndarray:
        """Images [N, height, width, channels], or a `PatchBatch`, to features [N, D].

        It compiles once a shape.
        """
        return np.asarray(self._forward(self._variables, images))

    def over(self, batches: Iterable[Any], num_classes: int) -> Examples:
        """The features and labels of all examples whose mask is not 0, in their order."""
        found = ({**batch, "features": self(batch["image"])} for batch in batches)
        return gathered(found, num_classes)


def gathered(batches: Iterable[Mapping[str, Any]], num_classes: int) -> Examples:
    """One table of examples from batches of 'features', 'label' and 'mask', without padding."""
    features, labels = [], []
    for batch in batches:
        real = np.asarray(batch["mask"]) > 0
        features.append(np.asarray(batch["features"])[real])
        labels.append(np.asarray(batch["label"])[real])
    return Examples(np.concatenate(features), np.concatenate(labels), num_classes)


def without_head(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The collections of a model without the parameters of its heads; leaves may be anything."""
    return {
        kind: {name: part for name, part in tree.items() if not is_head(name)}
        for kind, tree in variables.items()
    }


def draw_shots(source: Source, shots: int, seed: int) -> Subset:
    """`shots` random examples of every class, or all examples of a class that has fewer.

    Records are read in random order until every class has its share. No image is decoded.

    Raises:
      UserError: for an example with several labels.
    """
    count, classes = len(source), source.num_classes
    return Subset(source, drawn(lambda index: _label(source[index]), count, classes, shots, seed))


def drawn(
    label: Callable[[int], int], count: int, num_classes: int, shots: int, seed: int
) -> list[int]:
    """The numbers of `shots` random examples of every class, as `draw_shots` draws them.

    Args:
      label: The class of an example, by the example's number below `count`.
    """
    wanted = np.full(num_classes, shots)
    found = []
    for index in np.random.default_rng(seed).permutation(count).tolist():
        number = label(index)
        if wanted[number]:
            wanted[number] -= 1
            found.append(index)
            if not wanted.any():
                break
    return found


def _label(record: Mapping[str, Any]) -> int:
    if isinstance(record["label"], list):
        raise UserError(f"{record['name']} has a list of labels; a probe needs exactly one")
    return record["label"]

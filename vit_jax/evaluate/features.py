"""Features of a frozen model over a dataset, for the probes of `vit_jax.evaluate.fewshot`."""

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax import inference
from vit_jax.errors import UserError
from vit_jax.evaluate.fewshot import Examples
from vit_jax.families.family import is_head
from vit_jax.input_pipeline.records import Source, Subset
from vit_jax.input_pipeline.transforms import Decode, preprocess_image


class FeatureModel:
    """A model without its head, which turns images into the features that the head would get.

    It computes in float32.

    Raises:
      UserError: for a model that gives features for every token instead of the image.
    """

    def __init__(self, weights: inference.Weights):
        import jax

        from vit_jax.layers.attention.choice import attending
        from vit_jax.models import from_config

        known = weights.model
        if "unpooled" in known.config.get("classifier", ""):
            raise UserError(f"{known.name} has features for every token, not for the image")
        model = from_config(known.config, num_classes=0)
        self._preprocess = known.preprocess
        self._variables = jax.device_put(_without_head(weights.for_model()))
        # The model runs on one device, with the attention that is chosen around the call.
        self._forward = jax.jit(attending()(functools.partial(model.apply, train=False)))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: str | None = None, **how: Any
    ) -> "FeatureModel":
        """The model of a run or a checkpoint; arguments and errors of `inference.load_weights`."""
        return cls(inference.load_weights(path, model, **how))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images [N, height, width, channels] to features [N, D]; compiles once for each shape."""
        return np.asarray(self._forward(self._variables, images))

    def prepare(self, record: dict[str, Any], rng: Any = None) -> dict[str, Any]:
        """Decodes and preprocesses a stored example for this model, as a pipeline's transform.

        Raises:
          UserError: for an example with several labels.
        """
        label = np.int64(_label(record))
        return {
            "image": preprocess_image(
                Decode(self._preprocess.channels)(record)["image"], self._preprocess
            ),
            "label": label,
        }

    def over(self, batches: Iterable[Any], num_classes: int) -> Examples:
        """The features and labels of all examples whose mask is not 0, in their order."""
        features, labels = [], []
        for batch in batches:
            real = batch["mask"] > 0
            features.append(self(batch["image"])[real])
            labels.append(batch["label"][real])
        return Examples(np.concatenate(features), np.concatenate(labels), num_classes)


def _without_head(variables: Mapping[str, Any]) -> dict[str, Any]:
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
    wanted = np.full(source.num_classes, shots)
    drawn = []
    for index in np.random.default_rng(seed).permutation(len(source)).tolist():
        label = _label(source[index])
        if wanted[label]:
            wanted[label] -= 1
            drawn.append(index)
            if not wanted.any():
                break
    return Subset(source, drawn)


def _label(record: Mapping[str, Any]) -> int:
    if isinstance(record["label"], list):
        raise UserError(f"{record['name']} has a list of labels; a probe needs exactly one")
    return record["label"]

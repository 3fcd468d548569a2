"""Evaluations of a run's model of two towers: the loss, retrieval and zero-shot classification.

All processes embed the images and texts together, each its share of every batch, and each gets all
of the vectors. The figures are the same to the last bit for any number of them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.devices.sharding import batch_shards, replicated, to_devices
from vit_jax.errors import UserError
from vit_jax.evaluate import retrieval
from vit_jax.evaluate.top_k import counts
from vit_jax.families.text import Text
from vit_jax.input_pipeline.captions import tokens
from vit_jax.input_pipeline.loader import TestDataset
from vit_jax.input_pipeline.streams import Reading
from vit_jax.layers.attention.choice import attending
from vit_jax.train import batch_parts
from vit_jax.train.contrastive import LOSSES
from vit_jax.train.engine import Engine
from vit_jax.train.inputs import Inputs

Batches = Iterable[Mapping[str, Any]]
IMAGE, TOKENS = "image", "tokens"  # what the towers look at in a batch
RECALL = tuple(f"{way}@{k}" for way in ("image_to_text", "text_to_image") for k in retrieval.KS)


class Sentences:
    """A source of texts, of which a `TestDataset` makes batches of 'tokens'."""

    num_classes = 0

    def __init__(self, texts: Sequence[str], description: str):
        self._texts, self.description = list(texts), description

    def int2str(self, label: int) -> str:
        raise IndexError(f"texts have no classes; got class {label}")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self._texts[index], "name": f"text {index}"}


def sentences(
    texts: Sequence[str], text: Text, batch_size: int, reading: Reading, description: str = "texts"
) -> TestDataset:
    """Batches of the tokens of texts, int32 [rows, L], in their order."""
    source: Any = Sentences(texts, description)

    def prepare(record: Mapping[str, Any], rng: Any = None) -> dict[str, Any]:
        return {TOKENS: tokens([record["text"]], text)[0]}

    # No worker process could open this source, nor need it: texts are prepared in microseconds.
    reading = dataclasses.replace(reading, num_workers=0)
    return TestDataset(source, prepare, batch_size=batch_size, reading=reading)


class Embedder:
    """The towers of a run's model, which see `config.batch_eval_device` examples of a device.

    Args:
      engine: The computation of the run.
      config: Its complete config.
    """

    def __init__(self, engine: Engine, config: Any):
        self._engine, self._ahead = engine, config.prefetch
        inputs = Inputs.of(config.pp, 0)
        shards, rows = batch_shards(engine.mesh), config.batch_eval_device

        def image_tower(variables: Any, images: Any) -> tuple[Any, Any]:
            images = inputs({"image": images})["image"]
            return {}, engine.model.apply(variables, images, train=False)[0]

        def text_tower(variables: Any, tokens: Any) -> tuple[Any, Any]:
            found: Any = engine.model.apply(variables, tokens=tokens, train=False)
            _, ztxt, out = found
            return {name: out[name] for name in ("t", "b") if name in out}, ztxt

        def compiled(tower: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
            def step(variables: Any, x: Any) -> tuple[Any, Any]:
                out, z = batch_parts.in_parts(functools.partial(tower, variables), x, shards, rows)
                return {name: parts[0] for name, parts in out.items()}, z  # all parts have the same

            return jax.jit(
                attending("auto", engine.mesh)(step),
                in_shardings=(engine.evaluated, engine.batch),
                out_shardings=replicated(engine.mesh),
            )

        self._towers = {IMAGE: compiled(image_tower), TOKENS: compiled(text_tower)}
        self._gathered = jax.jit(lambda rest: rest, out_shardings=replicated(engine.mesh))

    def images(self, variables: Any, batches: Batches) -> Iterator[dict[str, np.ndarray]]:
        """Batches with 'z', the unit vectors of their images [rows, D], in their place."""
        yield from (found for _, found in self._over((IMAGE,), variables, batches))

    def texts(self, variables: Any, batches: Batches) -> np.ndarray:
        """The unit vectors of all texts, [N, D]."""
        found = self._over((TOKENS,), variables, batches)
        return np.concatenate([real(batch, "z") for _, batch in found])

    def pairs(
        self, variables: Any, batches: Batches
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """The unit vectors of images and texts of the same rows, [N, D] each, and 't' and 'b'."""
        both = list(self._over((IMAGE, TOKENS), variables, batches))
        zimg, ztxt = (
            np.concatenate([real(batch, "z") for _, batch in part])
            for part in (both[::2], both[1::2])
        )
        return zimg, ztxt, both[-1][0]

    def _over(
        self, names: Sequence[str], variables: Any, batches: Batches
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """For each batch and each of `names`: what its tower gives beside the vectors, and those.

        The vectors, 'z', come with what is in the batch beside images and tokens.
        """
        with to_devices(batches, self._engine.batch, self._ahead) as on_devices:
            for batch in on_devices:
                rest = {name: x for name, x in batch.items() if name not in self._towers}
                rest = _arrays(self._gathered(rest))
                for name in names:
                    out, z = self._towers[name](variables, batch[name])
                    yield _arrays(out), {**rest, "z": np.asarray(z)}


def real(batch: Mapping[str, Any], name: str) -> np.ndarray:
    """An array of a batch without padding."""
    return np.asarray(batch[name])[np.asarray(batch["mask"]) > 0]


def _arrays(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in tree.items()}


# --- figures -------------------------------------------------------------------------------------


def pair_figures(
    zimg: np.ndarray, ztxt: np.ndarray, out: Mapping[str, np.ndarray], loss: str, rows: int
) -> dict[str, float]:
    """The loss of N pairs as if they were one batch, and how often each finds its other half.

    Args:
      zimg, ztxt: Unit vectors [N, D].
      out: 't' and 'b' of the model.
      loss: A key of `LOSSES`.
      rows: As in `softmax_loss`.

    Returns:
      'loss', those of `RECALL` and 'examples'.
    """
    losses = np.asarray(_losses(zimg, ztxt, dict(out), loss, rows), np.float64)
    found = retrieval.recall(zimg, ztxt, range(len(zimg)))
    return {"loss": math.fsum(losses) / len(zimg), **found, "examples": len(zimg)}


@functools.partial(jax.jit, static_argnums=(3, 4))
def _losses(zimg: Any, ztxt: Any, out: Any, loss: str, rows: int) -> jax.Array:
    return LOSSES[loss](zimg, ztxt, out, rows)["loss"]


def zero_shot_figures(
    images: Iterable[Mapping[str, np.ndarray]], classes: np.ndarray, top5: bool
) -> dict[str, float]:
    """The accuracy over images whose class is that of the most similar vector.

    Args:
      images: Batches of 'z' [rows, D], 'label' and 'mask' [rows]. A label is the number of a class,
        or a vector [C] with a one for each class of the image, any of which is right.
      classes: Vectors of the classes, [C, D].
      top5: Whether to count the five most similar classes too.
    """
    sums = {"counted": 0, "correct": 0, "correct_top5": 0}
    total = 0
    for batch in images:
        label = batch["label"]
        if label.ndim == 1:
            label = np.eye(len(classes), dtype=np.float32)[label]
        found = counts(batch["z"] @ classes.T, label, batch["mask"])
        sums = {name: n + int(found.get(name, 0)) for name, n in sums.items()}
        total += int((batch["mask"] > 0).sum())
    if not sums["counted"]:
        raise UserError("no image of the dataset has a label")
    accuracy = {"accuracy": sums["correct"] / sums["counted"]}
    if top5:
        accuracy["accuracy_top5"] = sums["correct_top5"] / sums["counted"]
    return {**accuracy, "examples": total}

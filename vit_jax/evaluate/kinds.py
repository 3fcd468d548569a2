"""The kinds of evaluation that `config.evals` may name, one small function each.

A function opens the data and compiles nothing yet: what is wrong with an entry shows when a run
begins. Another kind is one more row of `KINDS`, and its fields one of `EVALUATION_KINDS` in
`configs/common.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.devices.sharding import batch_shards, replicated, to_devices
from vit_jax.errors import UserError, chosen
from vit_jax.evaluate import evaluation, features, fewshot, pairs, probing, retrieval, zeroshot
from vit_jax.input_pipeline import captions, classes, recipes, sources
from vit_jax.input_pipeline.loader import TestDataset, get_test_data
from vit_jax.input_pipeline.real_labels import RealLabels
from vit_jax.input_pipeline.records import Source
from vit_jax.input_pipeline.streams import Reading
from vit_jax.layers.attention.choice import attending
from vit_jax.train.engine import Engine

# A function that an evaluation passes its batches through: what follows them, or ends them early.
Follow = Callable[[Iterable[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What evaluations are built from.

    Attributes:
      config: The complete config of the run.
      engine: The computation of the run.
      class_names: The classes of the run, in the order of the logits.
      process_index, process_count: This host's number among those that evaluate together.
    """

    config: ConfigDict
    engine: Engine
    class_names: Sequence[str]
    process_index: int = 0
    process_count: int = 1

    @property
    def hosts(self) -> dict[str, Any]:
        return {"process_index": self.process_index, "process_count": self.process_count}

    @functools.cached_property
    def embedder(self) -> pairs.Embedder:
        """The towers of a model that compares images with texts; all evaluations share them."""
        return pairs.Embedder(self.engine, self.config)

    @property
    def reading(self) -> Reading:
        """How the hosts read together."""
        return Reading(self.config.data.num_workers, self.config.prefetch, **self.hosts)

    @property
    def folders(self) -> dict[str, Any]:
        """Where TFDS keeps its datasets."""
        return {"data_dir": self.config.tfds_data_dir, "manual_dir": self.config.tfds_manual_dir}


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """An evaluation that is ready to be made, of any variables of the run's model.

    Attributes:
      names: The names of its figures.
      datasets: What it reads.
      run: `(variables, follow) -> figures`, the same to the last bit in every process and for any
        number of processes, devices and images in a batch.
    """

    names: tuple[str, ...]
    datasets: tuple[TestDataset, ...]
    run: Callable[[Any, Follow], dict[str, float]]

    @property
    def summary(self) -> str:
        """What is read."""
        return "; ".join(dataset.summary for dataset in self.datasets)


def of_head(dataset: TestDataset, setting: Setting) -> Evaluator:
    """Top-1 and top-5 accuracy of the head, and the loss, over a dataset of the run's classes."""

    def run(variables: Any, follow: Follow) -> dict[str, float]:
        ahead = setting.config.prefetch
        return evaluation.evaluate(setting.engine, variables, follow(dataset), ahead).figures

    task = setting.engine.task
    return Evaluator(evaluation.names(task.top5, task.counts), (dataset,), run)


def accuracy(name: str, entry: ConfigDict, setting: Setting) -> Evaluator:
    """Top-1 and top-5 accuracy of the head, and the loss, over a split.

    Raises:
      UserError: as `open_source`, `RealLabels` and `classes.match`.
    """
    config, own = setting.config, entry.dataset is not None
    split = entry.split if own or entry.split else config.pp.test
    source = sources.open_source(entry.dataset or config.dataset, split, **setting.folders)
    if entry.real_labels:
        source = RealLabels(source, entry.real_labels)
    order = classes.match(
        classes.names_of(source),
        list(setting.class_names),
        dataset=source.description,
        model="the run",
        by_position=entry.by_position,
        option=_by_position(name),
    )
    source = classes.Relabelled(source, order, list(setting.class_names))
    return of_head(get_test_data(source, config, **setting.hosts), setting)


def probe(name: str, entry: ConfigDict, setting: Setting) -> Evaluator:
    """A probe of the features, few-shot or nearest neighbours: what `vit-jax eval --probe` finds.

    The features are computed by all processes together, in float32, and gathered in each of them.

    Raises:
      UserError: as `probing.open_splits`; for more neighbours than examples; and for a model that
        has no features of a whole image.
    """
    config, own = setting.config, entry.dataset is not None
    numbers: dict[str, Any] = {name: entry.get(name, 0) for name in ("shots", "seed")}
    to_learn, to_test = probing.open_splits(
        entry.dataset or config.dataset,
        entry.train_split or ("train" if own else config.pp.train),
        entry.split or ("test" if own else config.pp.test),
        by_position=entry.by_position,
        option=_by_position(name),
        **numbers,
        **setting.folders,
    )
    if entry.kind == "knn":
        fewshot.check_k(entry.k, len(to_learn))
    forward = feature_step(setting.engine, config)
    learn, test = (_images(source, setting) for source in (to_learn, to_test))

    def run(variables: Any, follow: Follow) -> dict[str, float]:
        headless = features.without_head(variables)

        def examples(dataset: TestDataset) -> fewshot.Examples:
            ahead = to_devices(follow(dataset), setting.engine.batch, config.prefetch)
            with ahead as batches:
                found = (forward(headless, batch) for batch in batches)
                return features.gathered(found, dataset.num_classes)

        train, queries = examples(learn), examples(test)
        found = probing.figures(entry.kind, train, queries, entry.to_dict())
        return {"accuracy": found.pop("top1"), **found, "examples": len(queries)}

    chosen = ("l2",) if entry.kind == "fewshot" else ()
    return Evaluator(("accuracy", *chosen, "examples"), (learn, test), run)


def of_pairs(dataset: TestDataset, setting: Setting) -> Evaluator:
    """The loss over all pairs of a dataset as if they were one batch, and recall both ways."""
    config = setting.config

    def run(variables: Any, follow: Follow) -> dict[str, float]:
        found = setting.embedder.pairs(variables, follow(dataset))
        return pairs.pair_figures(*found, config.contrastive.loss, config.contrastive.rows)

    return Evaluator(("loss", *pairs.RECALL, "examples"), (dataset,), run)


def retrieved(name: str, entry: ConfigDict, setting: Setting) -> Evaluator:
    """Recall both ways between the images of a dataset and all their captions.

    Raises:
      UserError: as `captions.open_captions`.
    """
    del name
    config, own = setting.config, entry.dataset is not None
    split = entry.split if own or entry.split else config.pp.test
    source = captions.open_captions(entry.dataset or config.dataset, split, **setting.folders)
    text = captions.text_of(config)
    texts = [source[i]["captions"] for i in range(len(source))]
    image_of = np.repeat(np.arange(len(texts)), [len(of_image) for of_image in texts])
    images = get_test_data(source, config, last=captions.Tokens(text), **setting.hosts)
    flat = [one for of_image in texts for one in of_image]
    spoken = pairs.sentences(
        flat, text, config.batch_eval, setting.reading, f"its {len(flat)} captions"
    )

    def run(variables: Any, follow: Follow) -> dict[str, float]:
        ztxt = setting.embedder.texts(variables, follow(spoken))
        found = list(setting.embedder.images(variables, follow(images)))
        zimg = np.concatenate([pairs.real(batch, "z") for batch in found])
        seen = np.flatnonzero(np.concatenate([batch["mask"] for batch in found]) > 0)
        kept = np.isin(image_of, seen)  # Captions of damaged images go with them.
        where = np.searchsorted(seen, image_of[kept])
        return {**retrieval.recall(zimg, ztxt[kept], where), "examples": len(zimg)}

    return Evaluator((*pairs.RECALL, "examples"), (images,), run)


def zero_shot(name: str, entry: ConfigDict, setting: Setting) -> Evaluator:
    """Top-1 and top-5 accuracy over a dataset of any classes, whose names are texts.

    Raises:
      UserError: as `open_source` and `zeroshot.class_texts`; for unknown prompts or averages.
    """
    config, own = setting.config, entry.dataset is not None
    split = entry.split if own or entry.split else config.pp.test
    source = sources.open_source(entry.dataset or config.dataset, split, **setting.folders)
    how = chosen(entry.averaging, zeroshot.AVERAGES, f"config.evals.{name}.averaging")
    prompts = entry.prompts or how.prompts
    templates = chosen(prompts, zeroshot.PROMPTS, f"config.evals.{name}.prompts")()
    names = zeroshot.own_names(source)
    texts = zeroshot.class_texts(names, templates, how)
    spoken = pairs.sentences(
        texts, captions.text_of(config), config.batch_eval, setting.reading, "prompts"
    )
    images = get_test_data(source, config, **setting.hosts)
    top5 = len(names) > 5

    def run(variables: Any, follow: Follow) -> dict[str, float]:
        vectors = zeroshot.class_embeddings(
            setting.embedder.texts(variables, follow(spoken)), len(names), how
        )
        found = setting.embedder.images(variables, follow(images))
        return pairs.zero_shot_figures(found, vectors, top5)

    figures = ("accuracy", *(("accuracy_top5",) if top5 else ()), "examples")
    return Evaluator(figures, (images,), run)


# (Name of the evaluation, its complete entry, setting) -> evaluator.
KINDS: dict[str, Callable[[str, ConfigDict, Setting], Evaluator]] = {
    "accuracy": accuracy,
    "fewshot": probe,
    "knn": probe,
    "retrieval": retrieved,
    "zeroshot": zero_shot,
}
_OF_PAIRS = ("retrieval", "zeroshot")


def of_test(dataset: TestDataset, setting: Setting) -> Evaluator:
    """The evaluation of a run's test split: of single images, or of all pairs together."""
    return (of_head if setting.engine.task.judge else of_pairs)(dataset, setting)


def require_fit(kind: str, setting: Setting) -> None:
    """Raises UserError for a kind that cannot evaluate what the run learns."""
    paired = setting.engine.task.judge is None
    if (kind in _OF_PAIRS) == paired:
        return
    fitting = [known for known in KINDS if (known in _OF_PAIRS) == paired]
    raise UserError(
        f"kind {kind!r} is not for objective={setting.config.objective!r}, whose model "
        f"{'compares images with texts' if paired else 'takes no texts'}; for it there are "
        f"{', '.join(fitting)}"
    )


def feature_step(engine: Engine, config: ConfigDict) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """Returns `(variables without heads, batch) -> batch`, of 'features', 'label' and 'mask'.

    The batch is split over the devices, and every process gets all of the result.

    Raises:
      UserError: for a model that has features for every token only.
    """
    model = features.feature_model(config.model)
    of_images = features.make_feature_step(model, batch_shards(engine.mesh))

    def step(variables: Any, batch: Any) -> dict[str, jax.Array]:
        found = {"label": batch["label"], "mask": batch["mask"]}
        return {**found, "features": of_images(variables, batch["image"])}

    return jax.jit(
        attending("auto", engine.mesh)(step),
        in_shardings=(features.without_head(engine.evaluated), engine.batch),
        out_shardings=replicated(engine.mesh),
    )


def _images(source: Source, setting: Setting) -> TestDataset:
    config = setting.config
    return TestDataset(
        source,
        features.Prepare(recipes.preprocess(config.pp)),
        batch_size=config.batch_eval,
        reading=setting.reading,
        on_error=config.data.on_error,
    )


def _by_position(name: str) -> str:
    return f"config.evals.{name}.by_position=True"

"""Batches for training and evaluation, read with Grain.

The whole dataset is shuffled, and the augmentation of an example is seeded by the config's seed and
the example's place in the stream. Batch number `step` is therefore the same for any number of
threads, worker processes and restarts.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import grain
import numpy as np

from vit_jax.configs import common
from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import captions, recipes
from vit_jax.input_pipeline import transforms as tr
from vit_jax.input_pipeline.classes import Relabelled, names_of
from vit_jax.input_pipeline.examples import RECORD, SKIPPED, OnError, TestExamples, TrainExamples
from vit_jax.input_pipeline.label_maps import LabelMaps
from vit_jax.input_pipeline.mixture import Mixture, open_mixture
from vit_jax.input_pipeline.order import Part, Repeated, shuffled
from vit_jax.input_pipeline.real_labels import RealLabels
from vit_jax.input_pipeline.records import has_several_labels
from vit_jax.input_pipeline.sources import FolderSource, Source, TfdsSource, open_source
from vit_jax.input_pipeline.streams import IN_THREADS, Batch, Batches, Reading

Mode = Literal["train", "test"]

# --- datasets ------------------------------------------------------------------------------------


class _Dataset:
    """The parts that the training set and the test set have in common."""

    def __init__(self, source: Source, batch_size: int, reading: Reading):
        reading.local(batch_size)  # Fails early if hosts cannot share a batch.
        self.num_examples = len(source)
        self.num_classes = source.num_classes
        self.class_names = names_of(source)
        self.description = source.description
        self.batch_size = batch_size
        self._reading = reading
        self._source = source
        self._damaged: set[int] = set()

    @property
    def summary(self) -> str:
        """What is read, how many images it has, and its classes in their order."""
        what = f"{self.description}: {self.num_examples} images"
        if not self.num_classes:
            return what
        return f"{what} of {self.num_classes} classes: {some(self.class_names, 10)}"

    def as_numpy_iterator(self) -> Iterator[Batch]:
        """The same as `iter(self)`, under the name that `tf.data` gives it."""
        return iter(self)

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    @property
    def errors(self) -> list[str]:
        """Names of the damaged images that were skipped so far, each once, in the source's order.

        The list covers the rows of this host in the batches that were handed out, whichever thread
        or worker process read them.
        """
        return [self._source[index]["name"] for index in sorted(self._damaged)]

    def _batches(self, examples: grain.MapDataset, start: int = 0) -> Batches:
        return Batches(examples, self.batch_size, self._reading, start, self._note_damaged)

    def _note_damaged(self, batch: Batch) -> None:
        """Removes the fields that are not for the model, and notes the damaged images they name."""
        records, skipped = batch.pop(RECORD, None), batch.pop(SKIPPED, None)
        if records is None or skipped is None:
            return
        for row in np.flatnonzero(skipped):
            first, count = int(records[row]), int(skipped[row])
            self._damaged.update((first + i) % self.num_examples for i in range(count))


class TrainDataset(_Dataset):
    """An endless stream of shuffled, augmented batches.

    Every epoch is a new permutation of all examples, and a batch may hold the end of one epoch and
    the start of the next. Batch number `step` is a pure function of (seed, step).

    Args:
      source: Source of the records.
      transform: Function that makes an example from a record.
      batch_size: Number of rows in a batch, over all hosts.
      seed: Seed of the order and of the augmentation.
      reading: Threads, worker processes and hosts that read the batches.
      on_error: Treatment of a damaged image: 'raise' ends the stream with an error that names the
        image; 'skip' puts the next good record of the source in its place, and adds the image to
        `errors`.
      repeats: Number of times that a batch holds an example. The copies are augmented differently
        and spread over the batch, and an epoch has `repeats` times as many batches.
      parts: Parts of the source that are mixed by their weights, each shuffled by itself; they
        must make up the source. By default the source is one part.
    """

    def __init__(
        self,
        source: Source,
        transform: tr.Transform,
        *,
        batch_size: int,
        seed: int,
        reading: Reading = IN_THREADS,
        on_error: OnError = "raise",
        repeats: int = 1,
        parts: Sequence[Part] = (),
    ):
        super().__init__(source, batch_size, reading)
        records = shuffled(parts or [Part(len(source))], -(-batch_size // repeats), seed)
        if repeats > 1:
            records = Repeated(records, batch_size, repeats)
        make = TrainExamples(source, transform, on_error)
        self._examples = records.random_map(make)

    def iterate(self, start_step: int = 0) -> Batches:
        """The batches from number `start_step` on; the batches before it are not made.

        Yields:
          'image': float32 [rows, crop, crop, 3] in [-1, 1] (or as `config.pp.mean` and `std`
          have it); 'label': float32 [rows, num_classes] of zeros and ones; and what `label_maps`
          keeps, where there are maps; or what another last step of `transform` makes in their
          place. `rows` is the number of rows that this host reads of each
          batch.

        Raises:
          UserError: if the file of an image cannot be read; the message names the file.
          DamagedImage: if an image cannot be decoded and `on_error` is 'raise'.
        """
        return self._batches(self._examples, start_step)

    def __iter__(self) -> Batches:
        return self.iterate()


class TestDataset(_Dataset):
    """Batches of every example exactly once, in order; the last batch is filled up and masked.

    Iterating yields 'image' and 'label' as `TrainDataset` does, and 'mask': float32 [rows], 1 for
    an example and 0 for filling, whose image and label are zeros.

    Args:
      source: Source of the records.
      transform: Function that makes an example from a record.
      batch_size: Number of rows in a batch, over all hosts.
      reading: Threads, worker processes and hosts that read the batches.
      on_error: Treatment of a damaged image: 'raise' ends the stream with an error that names the
        image; 'skip' replaces the example by filling, and adds the image to `errors`.
    """

    __test__ = False  # pytest would otherwise take the class for a test, because of its name.

    def __init__(
        self,
        source: Source,
        transform: tr.Transform,
        *,
        batch_size: int,
        reading: Reading = IN_THREADS,
        on_error: OnError = "raise",
    ):
        super().__init__(source, batch_size, reading)
        examples = TestExamples(source, transform, len(self) * batch_size, on_error)
        self._examples = grain.MapDataset.source(examples)

    def __len__(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def __iter__(self) -> Batches:
        return self._batches(self._examples)


# --- from a config -------------------------------------------------------------------------------


def get_datasets(
    config: Any, *, process_index: int = 0, process_count: int = 1, compact: bool = False
) -> tuple[TrainDataset, TestDataset]:
    """The training and the test set of a run.

    Args:
      config: A training config. A field that the config lacks has its default in
        `configs/common.py`.
        `config.dataset` is whatever `open_source` reads: a folder of images or of ImageNet's tar
        files, a table, an `.npz`, or a TFDS name; its splits are `config.pp.train` and
        `config.pp.test`. With `config.mixture`, training reads the datasets listed there instead.
        With the objective 'contrastive' it is whatever `open_captions` reads, and batches have
        'tokens', int32 [rows, config.text.length], in place of labels.
      process_index: This host's number among `process_count` that train together.
      process_count: How many hosts train together.
      compact: Whether images stay uint8 where their preparation ends in pixels, and labels stay
        numbers, int32 [rows], where every image has one; `vit_jax.train.inputs` makes the rest of
        them on the devices, to the last bit as it is made here otherwise. The filling of a test
        batch is zeros then too, which is black images of class 0.

    Raises:
      UserError: for a bad setting or bad data.
    """

    config = common.with_defaults(config)
    how = {"process_index": process_index, "process_count": process_count, "compact": compact}
    last: dict[Mode, tr.Transform | None] = {"train": None, "test": None}
    if config.objective == captions.OBJECTIVE:
        train, test = (_open(config, mode, captions.open_captions) for mode in ("train", "test"))
        text = captions.text_of(config)
        last = {mode: captions.Tokens(text, drawn=mode == "train") for mode in last}
    elif config.mixture:
        test = _open(config, "test")
        train = open_mixture(config, names_of(test))
        if added := range(test.num_classes, train.num_classes):
            test = Relabelled(test, range(added.start), names_of(train))
    else:
        train, test = (_open(config, mode) for mode in ("train", "test"))
    sources: dict[Mode, Source] = {"train": train, "test": test}
    train_set, test_set = (
        _dataset(source, config, mode, last=last[mode], **how) for mode, source in sources.items()
    )
    return train_set, test_set  # pyright: ignore (_dataset returns the class of each mode)


def get_data_from_tfds(
    *, config: Any, mode: Mode, process_index: int = 0, process_count: int = 1
) -> TrainDataset | TestDataset:
    """The training set or the test set of a run, read from the TFDS dataset `config.dataset`.

    Args:
      config, process_index, process_count: As in `get_datasets`.
      mode: 'train' or 'test'; the TFDS split is `config.pp[mode]`.

    Raises:
      UserError: for a bad setting or bad data.
    """
    config = common.with_defaults(config)
    source = TfdsSource(
        config.dataset, config.pp[mode], config.tfds_data_dir, config.tfds_manual_dir
    )
    return _dataset(source, config, mode, process_index, process_count)


def get_data_from_directory(
    *,
    config: Any,
    directory: str | os.PathLike[str],
    mode: Mode,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainDataset | TestDataset:
    """The training or the test set of a run, read from the images `<directory>/<class>/<image>`.

    Args:
      config, process_index, process_count: As in `get_datasets`.
      directory: Folder of one split, with a subfolder for each class.
      mode: 'train' shuffles and augments; 'test' reads every image once.

    Raises:
      UserError: for a bad setting or bad data.
    """
    source = FolderSource(directory)
    return _dataset(source, common.with_defaults(config), mode, process_index, process_count)


def get_test_data(
    source: Source,
    config: Any,
    *,
    last: tr.Transform | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> TestDataset:
    """Every example of a source once, in its order, as a run with a complete config sees images.

    They are `compact`, see `get_datasets`.

    Args:
      source: Source with the class numbers of the run.
      config: A complete config; its `dataset`, `pp.test` and `data.real_labels` are not looked at.
      last: As of `recipes.eval_transform`.
      process_index, process_count: As in `get_datasets`.

    Raises:
      UserError: for a bad setting.
    """
    config = config.copy_and_resolve_references().unlock()
    config.data.real_labels = None
    hosts = process_index, process_count
    return _dataset(source, config, "test", *hosts, compact=True, last=last)  # pyright: ignore


def _open(config: Any, mode: Mode, opened: Callable[..., Source] = open_source) -> Source:
    return opened(
        config.dataset,
        config.pp[mode],
        data_dir=config.tfds_data_dir,
        manual_dir=config.tfds_manual_dir,
    )


def _dataset(
    source: Source,
    config: Any,
    mode: Mode,
    process_index: int,
    process_count: int,
    compact: bool = False,
    last: tr.Transform | None = None,
) -> TrainDataset | TestDataset:
    _check(config)
    data = config.data
    reading = Reading(data.num_workers, config.prefetch, process_index, process_count)

    def form(source: Source) -> dict[str, Any]:
        if last is not None:
            return {"pixels": compact, "last": last}
        return {"pixels": compact, "numbers": compact and not has_several_labels(source)}

    if mode == "train":
        parts = source.parts if isinstance(source, Mixture) else ()
        if config.token_labels.maps:
            recipes.check_tells_places(config.pp)
            source = LabelMaps(source, config.token_labels.maps)
        return TrainDataset(
            source,
            recipes.train_transform(config.pp, source.num_classes, **form(source)),
            batch_size=config.batch,
            seed=config.seed,
            reading=reading,
            on_error=data.on_error,
            repeats=data.repeats,
            parts=parts,
        )
    if mode == "test":
        if data.real_labels:
            source = RealLabels(source, data.real_labels)
        return TestDataset(
            source,
            recipes.eval_transform(config.pp, source.num_classes, **form(source)),
            batch_size=config.batch_eval,
            reading=reading,
            on_error=data.on_error,
        )
    raise UserError(f"mode must be 'train' or 'test', got {mode!r}")


def _check(config: Any) -> None:
    """Raises UserError for settings with which no batch can be made."""
    on_error = config.data.on_error
    if on_error not in ("raise", "skip"):
        raise UserError(f"config.data.on_error must be 'raise' or 'skip', got {on_error!r}")
    recipes.check(config.pp)

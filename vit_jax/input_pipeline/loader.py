"""Batches for training and evaluation, read with Grain.

Shuffling is global, and an example's augmentation is seeded by (seed, place in the stream), so
that batch `step` is the same for any number of threads, workers or restarts.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any, Literal

import grain
import numpy as np

from vit_jax.configs import common
from vit_jax.errors import UserError, suggest
from vit_jax.input_pipeline import transforms as tr
from vit_jax.input_pipeline.sources import FolderSource, Source, TfdsSource

Batch = dict[str, np.ndarray]
Mode = Literal["train", "test"]

AUGMENTATIONS = ("inception", "crop", "digits", "none")


# --- what to do with an example ------------------------------------------------------------------


def train_transform(
    *, augment: str, crop: int, resize: int | None, num_classes: int
) -> tr.Transform:
    """From encoded bytes to a training example.

    Args:
      augment: 'inception' is the original's: a window of 5 to 100 % of the area, resized to
        `crop`, and a flip (`resize` plays no part: the window sets the scale). 'crop' is the
        original's `inception_crop=False`: resize to `resize`, random crop, flip. 'digits' shifts
        by up to an eighth of the side and turns by up to 12°. 'none' does as in
        evaluation.
      crop: Side in pixels of what the model gets.
      resize: Side in pixels before cropping, or None.
      num_classes: Length of the one-hot label.
    """
    steps: dict[str, tuple[tr.Transform, ...]] = {
        "inception": (tr.InceptionCrop(crop), tr.Flip()),
        "crop": (tr.Resize(resize or crop), tr.RandomCrop(crop), tr.Flip()),
        # Scaled up first: turned at 8 × 8, training images would be blurred as no test image is.
        "digits": (
            *_scaled(crop, resize),
            tr.RandomShift(max(1, crop // 8)),
            tr.RandomRotation(12),
        ),
        "none": _scaled(crop, resize),
    }
    return tr.Chain((tr.Decode(), *steps[augment], tr.ValueRange(), tr.OneHot(num_classes)))


def eval_transform(*, crop: int, resize: int | None, num_classes: int) -> tr.Transform:
    """From encoded bytes to a test example: `train_transform` with augment 'none'."""
    return train_transform(augment="none", crop=crop, resize=resize, num_classes=num_classes)


def _scaled(crop: int, resize: int | None) -> tuple[tr.Transform, ...]:
    """Resize and central crop; without `resize`, squash to the crop's size."""
    return (tr.Resize(crop),) if resize is None else (tr.Resize(resize), tr.CentralCrop(crop))


# --- reading -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reading:
    """How batches are read; none of it changes what is in them.

    Attributes:
      num_workers: Processes that decode and augment; 0 does it in threads of this one.
      prefetch: Batches made ahead.
      process_index, process_count: This host's place among those that train together: host p
        reads rows [p * B / n, (p + 1) * B / n) of every batch of B.
    """

    num_workers: int = 0
    prefetch: int = 2
    process_index: int = 0
    process_count: int = 1

    def local(self, batch_size: int) -> int:
        """This host's rows of a batch.

        Raises:
          UserError: if the batch does not divide evenly among the hosts.
        """
        if batch_size % self.process_count:
            raise UserError(
                f"a batch of {batch_size} does not divide among {self.process_count} processes"
            )
        return batch_size // self.process_count


class _LocalRows(grain.MapDataset):
    """Of every global batch's examples, those that this host reads."""

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, batch_size: int, reading: Reading):
        super().__init__(parent)
        self._batch_size = batch_size
        self._rows = reading.local(batch_size)
        self._first = reading.process_index * self._rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._rows)
        return self._parent[batch * self._batch_size + self._first + row]


def _batches(
    examples: grain.MapDataset, batch_size: int, reading: Reading, start: int = 0
) -> Iterator[Batch]:
    """Batches from number `start` on, in order, made ahead in threads or processes."""
    rows = reading.local(batch_size)
    examples = _LocalRows(examples, batch_size, reading)[start * rows :]
    ahead = max(1, reading.prefetch)
    if reading.num_workers:
        _parse_absl_flags()
        # A worker takes every num_workers-th batch, whole.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        workers = grain.MultiprocessingOptions(
            num_workers=reading.num_workers,
            per_worker_buffer_size=-(-ahead // reading.num_workers),
        )
        batches = examples.batch(rows).to_iter_dataset(options)
        batches = batches.mp_prefetch(workers, worker_init_fn=_one_opencv_thread)
    else:
        # Threads take single examples: the first batch is ready sooner, and memory is bounded.
        options = grain.ReadOptions(
            num_threads=os.cpu_count() or 1, prefetch_buffer_size=rows * ahead
        )
        batches = examples.to_iter_dataset(options).batch(rows)
    return iter(batches)


def _one_opencv_thread(worker_index: int, worker_count: int) -> None:
    """The workers are the parallelism; each with a thread pool of its own would be too much."""
    import cv2

    cv2.setNumThreads(1)


def _parse_absl_flags() -> None:
    """Grain's workers are sent absl flags, which exist only once they are parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


class _Dataset:
    """What the training and the test set have in common."""

    def __init__(self, source: Source, batch_size: int, reading: Reading):
        reading.local(batch_size)  # Fails early if hosts cannot share a batch.
        self.num_examples = len(source)
        self.num_classes = source.num_classes
        self.class_names = [source.int2str(label) for label in range(source.num_classes)]
        self.batch_size = batch_size
        self._reading = reading

    def as_numpy_iterator(self) -> Iterator[Batch]:
        """The name that `tf.data` gives to iterating."""
        return iter(self)

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError


class TrainDataset(_Dataset):
    """An endless stream of shuffled, augmented batches.

    Every epoch is a new permutation of all examples; batches run over its end. Batch `step` is a
    pure function of (seed, step).

    Args:
      source: Examples.
      transform: Makes an example of a record.
      batch_size: Rows of a batch, over all hosts.
      seed: Chooses order and augmentation.
      reading: Threads, workers, hosts.
    """

    def __init__(
        self,
        source: Source,
        transform: tr.Transform,
        *,
        batch_size: int,
        seed: int,
        reading: Reading = Reading(),
    ):
        super().__init__(source, batch_size, reading)
        records = grain.MapDataset.source(source).seed(seed % 2**32).shuffle()
        self._examples = records.repeat().random_map(transform)

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches from number `start_step` on, without making the ones before.

        Yields:
          'image': float32 [rows, crop, crop, 3] in [-1, 1]; 'label': float32 one-hot
          [rows, num_classes]; rows are this host's.

        Raises:
          UserError: naming the file, if an image cannot be decoded.
        """
        return _batches(self._examples, self.batch_size, self._reading, start_step)

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate()


class TestDataset(_Dataset):
    """Every example exactly once, in order; the last batch is filled up and masked.

    Iterating yields 'image' and 'label' as `TrainDataset` does, and 'mask': float32 [rows], 1 for
    an example and 0 for filling (whose image and label are zeros).

    Args:
      source: Examples.
      transform: Makes an example of a record.
      batch_size: Rows of a batch, over all hosts.
      reading: Threads, workers, hosts.
    """

    __test__ = False  # No test class, whatever pytest makes of its name.

    def __init__(
        self,
        source: Source,
        transform: tr.Transform,
        *,
        batch_size: int,
        reading: Reading = Reading(),
    ):
        super().__init__(source, batch_size, reading)
        examples = _Padded(source, transform, len(self) * batch_size)
        self._examples = grain.MapDataset.source(examples)

    def __len__(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self._examples, self.batch_size, self._reading)


class _Padded:
    """A source's examples with a mask, and zeros with mask 0 after the last one."""

    def __init__(self, source: Source, transform: tr.Transform, length: int):
        self._source, self._transform, self._length = source, transform, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self._source):
            return self._blank
        example = self._transform(dict(self._source[index]))
        return {**example, "mask": np.ones((), np.float32)}

    @functools.cached_property
    def _blank(self) -> Batch:
        return {name: np.zeros_like(value) for name, value in self[0].items()}


# --- from a config -------------------------------------------------------------------------------


def get_datasets(
    config: Any, *, process_index: int = 0, process_count: int = 1
) -> tuple[TrainDataset, TestDataset]:
    """The training and the test set of a run.

    Args:
      config: A training config; fields that it lacks have the defaults of `configs/common.py`.
        `config.dataset` is a directory of `{train,test}/<class>/<image>`, or else a TFDS name
        whose splits are `config.pp.train` and `config.pp.test`.
      process_index: This host's number among `process_count` that train together.
      process_count: How many hosts train together.

    Raises:
      UserError: for a bad setting or bad data.
    """

    def get(mode: Mode) -> Any:
        hosts = {"process_index": process_index, "process_count": process_count}
        if os.path.isdir(config.dataset):
            directory = os.path.join(config.dataset, mode)
            return get_data_from_directory(config=config, directory=directory, mode=mode, **hosts)
        return get_data_from_tfds(config=config, mode=mode, **hosts)

    return get("train"), get("test")


def get_data_from_tfds(
    *, config: Any, mode: Mode, process_index: int = 0, process_count: int = 1
) -> TrainDataset | TestDataset:
    """One split of the TFDS dataset `config.dataset`, as `get_datasets`."""
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
    """The images `<directory>/<class>/<image>`, as `get_datasets`."""
    source = FolderSource(directory)
    return _dataset(source, common.with_defaults(config), mode, process_index, process_count)


def _dataset(
    source: Source, config: Any, mode: Mode, process_index: int, process_count: int
) -> TrainDataset | TestDataset:
    pp = config.pp
    _check(config)
    reading = Reading(config.data.num_workers, config.prefetch, process_index, process_count)
    sizes = {"crop": pp.crop, "resize": pp.resize, "num_classes": source.num_classes}
    if mode == "train":
        return TrainDataset(
            source,
            train_transform(augment=pp.augment, **sizes),
            batch_size=config.batch,
            seed=config.seed,
            reading=reading,
        )
    if mode == "test":
        return TestDataset(
            source, eval_transform(**sizes), batch_size=config.batch_eval, reading=reading
        )
    raise UserError(f"mode must be 'train' or 'test', got {mode!r}")


def _check(config: Any) -> None:
    """Raises UserError for settings that make no batch."""
    pp = config.pp
    positive = {"batch": config.batch, "batch_eval": config.batch_eval, "pp.crop": pp.crop}
    if pp.resize is not None:
        positive["pp.resize"] = pp.resize
    for name, value in positive.items():
        _check_integer(name, value, least=1)
    for name, value in {
        "data.num_workers": config.data.num_workers,
        "prefetch": config.prefetch,
        "seed": config.seed,
    }.items():
        _check_integer(name, value, least=0)
    if pp.resize is not None and pp.resize < pp.crop:
        raise UserError(f"config.pp.resize ({pp.resize}) is smaller than pp.crop ({pp.crop})")
    if pp.augment not in AUGMENTATIONS:
        raise UserError(
            f"unknown config.pp.augment {pp.augment!r}.{suggest(str(pp.augment), AUGMENTATIONS)} "
            f"Choose from {', '.join(AUGMENTATIONS)}"
        )


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"config.{name} must be an integer of at least {least}, got {value!r}")

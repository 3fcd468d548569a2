"""Batches for training and evaluation, read with Grain.

Shuffling is global, and an example's augmentation is seeded by (seed, place in the stream), so
that batch `step` is the same for any number of threads, workers or restarts.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import grain
import numpy as np

from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.input_pipeline import recipes
from vit_jax.input_pipeline import transforms as tr
from vit_jax.input_pipeline.decode import DamagedImage
from vit_jax.input_pipeline.sources import FolderSource, Source, TfdsSource, open_source

Batch = dict[str, np.ndarray]
Mode = Literal["train", "test"]
OnError = Literal["raise", "skip"]

# So many damaged images in a row are no accident.
_MOST_DAMAGED = 100
# Seconds that a worker goes on after SIGTERM.
_GRACE = 20
# Fields of an example that are not for the model: the record it is of, and how many were skipped.
_RECORD, _SKIPPED = "_record", "_skipped"

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


class _Repeated(grain.MapDataset):
    """Batches in which an image comes `times` times (Hoffer et al. 2019, arXiv:1901.09335).

    A batch of N holds the next U = ⌈N / times⌉ images, one copy of each after the other, and then
    all of them again: copy r of image i stands at r U + i. Mixing, which takes an example's
    neighbour, so meets another image. Where `times` does not divide N the round of the last copies
    ends early, and the last images of the batch have one copy less.
    """

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, batch_size: int, times: int):
        super().__init__(parent)
        self._batch_size, self._images = batch_size, -(-batch_size // times)

    def __len__(self) -> int:
        return len(self._parent)  # Without end.

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, self._batch_size)
        return self._parent[batch * self._images + place % self._images]


class Batches(Iterator[Batch]):
    """A stream of batches that can be closed, which ends its threads or worker processes.

    Also a context manager that closes itself. It has no state to save beyond the number of the
    next batch: `TrainDataset.iterate(step)` goes on from any step, on any number of hosts.
    """

    def __init__(self, batches: grain.DatasetIterator, note: Callable[[Batch], None], shared: bool):
        self._note, self._shared = note, shared
        # Emptied when this is closed, or forgotten, or at the process's exit while that is still
        # orderly: whichever comes first.
        self._stream = [batches]
        self._end = weakref.finalize(self, _end, self._stream, shared)

    def __next__(self) -> Batch:
        if not self._stream:
            raise StopIteration
        batch = next(self._stream[0])
        self._note(batch)
        # Workers hand over shared memory, which lives as long as what refers to it: an array on
        # the device may do so, and outlive this process's chance to free it.
        return {name: np.array(part) for name, part in batch.items()} if self._shared else batch

    def close(self) -> None:
        """Ends whatever makes batches; there are none afterwards."""
        if self._stream:
            _close_workers(self._stream[0])
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _close_workers(batches: grain.DatasetIterator) -> None:
    """Closes workers at once: Grain alone waits a second for each, one after the other."""
    workers = getattr(batches, "_iterators_in_use", ())  # None where none was started yet.
    with concurrent.futures.ThreadPoolExecutor(max(len(workers), 1)) as pool:
        for worker in filter(None, workers):
            pool.submit(worker.close)


def _end(stream: list[grain.DatasetIterator], shared: bool) -> None:
    batches = stream.pop()
    batches.close()
    del batches  # Grain's own clean-up, at exit, would find its modules gone.
    if shared:
        _free_shared_memory()


def _free_shared_memory() -> None:
    """Waits until the memory of the last batches is free.

    Grain frees it in one thread, in order, and forgets what is left when the process ends; Python
    then warns of leaked memory. Without these insides of Grain there would be just the warning.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

        if pool := SharedMemoryArray._del_thread_pool:
            pool.apply(int)  # Its turn comes after all that was asked for before.


def _read(
    examples: grain.MapDataset, batch_size: int, reading: Reading, start: int = 0
) -> grain.DatasetIterator:
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
        batches = batches.mp_prefetch(workers, worker_init_fn=_prepare_worker)
    else:
        # Threads take single examples: the first batch is ready sooner, and memory is bounded.
        options = grain.ReadOptions(
            num_threads=os.cpu_count() or 1, prefetch_buffer_size=rows * ahead
        )
        batches = examples.to_iter_dataset(options).batch(rows)
    return iter(batches)


def _prepare_worker(worker_index: int, worker_count: int) -> None:
    import cv2

    # The workers are the parallelism; each with a thread pool of its own would be too much.
    cv2.setNumThreads(1)
    # A cluster sends SIGTERM to every process of a job: live on until the run's last step is saved.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _parse_absl_flags() -> None:
    """Grain's workers are sent absl flags, which exist only once they are parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


# --- examples ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _TrainExamples:
    """Makes the example at a place in the stream from a record's number.

    In place of a damaged image stands the next good one in the source, with the same draws:
    whichever process makes the example, it is the same.
    """

    source: Source
    transform: tr.Transform
    on_error: OnError

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        if self.on_error == "raise":
            return self.transform(dict(self.source[index]), rng)
        count = len(self.source)
        for skipped in range(min(count, _MOST_DAMAGED)):
            with contextlib.suppress(DamagedImage):
                record = dict(self.source[(index + skipped) % count])
                return {**self.transform(record, rng), **_origin(index, skipped)}
        raise _all_damaged(self.source, index)


class _TestExamples:
    """A source's examples with a mask; after the last, and for a damaged one, zeros with mask 0."""

    def __init__(self, source: Source, transform: tr.Transform, length: int, on_error: OnError):
        self._source, self._transform, self._length = source, transform, length
        self._on_error = on_error

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self._source):
            return {**self._blank, **self._origin(index, 0)}
        try:
            example = self._transform(dict(self._source[index]))
        except DamagedImage:
            if self._on_error == "raise":
                raise
            return {**self._blank, **self._origin(index, 1)}
        return {**example, "mask": np.ones((), np.float32), **self._origin(index, 0)}

    def _origin(self, index: int, skipped: int) -> Batch:
        return _origin(index, skipped) if self._on_error == "skip" else {}

    @functools.cached_property
    def _blank(self) -> Batch:
        for index in range(min(len(self._source), _MOST_DAMAGED)):
            try:
                example = self._transform(dict(self._source[index]))
            except DamagedImage:
                if self._on_error == "raise":
                    raise
                continue
            zeros = {name: np.zeros_like(value) for name, value in example.items()}
            return {**zeros, "mask": np.zeros((), np.float32)}
        raise _all_damaged(self._source, 0)


def _origin(index: int, skipped: int) -> Batch:
    return {_RECORD: np.array(index), _SKIPPED: np.array(skipped)}


def _all_damaged(source: Source, index: int) -> UserError:
    return UserError(
        f"{min(len(source), _MOST_DAMAGED)} images in a row cannot be decoded, the first of them "
        f"{source[index]['name']}; is this a dataset of images?"
    )


# --- datasets ------------------------------------------------------------------------------------


class _Dataset:
    """What the training and the test set have in common."""

    def __init__(self, source: Source, batch_size: int, reading: Reading):
        reading.local(batch_size)  # Fails early if hosts cannot share a batch.
        self.num_examples = len(source)
        self.num_classes = source.num_classes
        self.class_names = [source.int2str(label) for label in range(source.num_classes)]
        self.batch_size = batch_size
        self._reading = reading
        self._source = source
        self._damaged: set[int] = set()

    def as_numpy_iterator(self) -> Iterator[Batch]:
        """The name that `tf.data` gives to iterating."""
        return iter(self)

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    @property
    def errors(self) -> list[str]:
        """Names of the damaged images that were skipped so far, each once, in the source's order.

        They are those of this host's rows, whichever thread or worker process met them, and of
        batches made ahead.
        """
        return [self._source[index]["name"] for index in sorted(self._damaged)]

    def _batches(self, examples: grain.MapDataset, start: int = 0) -> Batches:
        batches = _read(examples, self.batch_size, self._reading, start)
        return Batches(batches, self._note_damaged, shared=self._reading.num_workers > 0)

    def _note_damaged(self, batch: Batch) -> None:
        """Takes the fields that are not for the model out of a batch, and remembers them."""
        records, skipped = batch.pop(_RECORD, None), batch.pop(_SKIPPED, None)
        if records is None or skipped is None:
            return
        for row in np.flatnonzero(skipped):
            first, count = int(records[row]), int(skipped[row])
            self._damaged.update((first + i) % self.num_examples for i in range(count))


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
      on_error: What a damaged image does: 'raise' names it and ends the stream; 'skip' puts the
        next good record of the source in its place, and adds it to `errors`.
      repeats: How often a batch holds an example, augmented differently each time and spread
        over the batch; an epoch is so many times longer.
    """

    def __init__(
        self,
        source: Source,
        transform: tr.Transform,
        *,
        batch_size: int,
        seed: int,
        reading: Reading = Reading(),
        on_error: OnError = "raise",
        repeats: int = 1,
    ):
        super().__init__(source, batch_size, reading)
        records = grain.MapDataset.range(len(source)).seed(seed % 2**32).shuffle().repeat()
        if repeats > 1:
            records = _Repeated(records, batch_size, repeats)
        make = _TrainExamples(source, transform, on_error)
        self._examples = records.random_map(make)

    def iterate(self, start_step: int = 0) -> Batches:
        """Batches from number `start_step` on, without making the ones before.

        Yields:
          'image': float32 [rows, crop, crop, 3] in [-1, 1] (or as `config.pp.mean` and `std`
          have it); 'label': float32 [rows, num_classes] of zeros and ones; rows are this host's.

        Raises:
          UserError: naming the file, if an image cannot be read; DamagedImage, if it cannot be
            decoded and `on_error` is 'raise'.
        """
        return self._batches(self._examples, start_step)

    def __iter__(self) -> Batches:
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
      on_error: What a damaged image does: 'raise' names it and ends the stream; 'skip' makes it
        filling, and adds it to `errors`.
    """

    __test__ = False  # No test class, whatever pytest makes of its name.

    def __init__(
        self,
        source: Source,
        transform: tr.Transform,
        *,
        batch_size: int,
        reading: Reading = Reading(),
        on_error: OnError = "raise",
    ):
        super().__init__(source, batch_size, reading)
        examples = _TestExamples(source, transform, len(self) * batch_size, on_error)
        self._examples = grain.MapDataset.source(examples)

    def __len__(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def __iter__(self) -> Batches:
        return self._batches(self._examples)


# --- from a config -------------------------------------------------------------------------------


def get_datasets(
    config: Any, *, process_index: int = 0, process_count: int = 1
) -> tuple[TrainDataset, TestDataset]:
    """The training and the test set of a run.

    Args:
      config: A training config; fields that it lacks have the defaults of `configs/common.py`.
        `config.dataset` is whatever `open_source` reads: a folder of images or of ImageNet's tar
        files, a CSV file, or a TFDS name; its splits are `config.pp.train` and `config.pp.test`.
      process_index: This host's number among `process_count` that train together.
      process_count: How many hosts train together.

    Raises:
      UserError: for a bad setting or bad data.
    """

    config = common.with_defaults(config)
    hosts = {"process_index": process_index, "process_count": process_count}
    train, test = (
        _dataset(_open(config, mode), config, mode, **hosts) for mode in ("train", "test")
    )
    return train, test  # pyright: ignore (each of its own mode)


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


def _open(config: Any, mode: Mode) -> Source:
    return open_source(
        config.dataset,
        config.pp[mode],
        data_dir=config.tfds_data_dir,
        manual_dir=config.tfds_manual_dir,
    )


def _dataset(
    source: Source, config: Any, mode: Mode, process_index: int, process_count: int
) -> TrainDataset | TestDataset:
    _check(config)
    data = config.data
    reading = Reading(data.num_workers, config.prefetch, process_index, process_count)
    if mode == "train":
        return TrainDataset(
            source,
            recipes.train_transform(config.pp, source.num_classes),
            batch_size=config.batch,
            seed=config.seed,
            reading=reading,
            on_error=data.on_error,
            repeats=data.repeats,
        )
    if mode == "test":
        return TestDataset(
            source,
            recipes.eval_transform(config.pp, source.num_classes),
            batch_size=config.batch_eval,
            reading=reading,
            on_error=data.on_error,
        )
    raise UserError(f"mode must be 'train' or 'test', got {mode!r}")


def _check(config: Any) -> None:
    """Raises UserError for settings that make no batch."""
    pp, data = config.pp, config.data
    positive = {
        "batch": config.batch,
        "batch_eval": config.batch_eval,
        "pp.crop": pp.crop,
        "data.repeats": data.repeats,
        "pp.randaug.num_ops": pp.randaug.num_ops,
    }
    if pp.resize is not None:
        positive["pp.resize"] = pp.resize
    for name, value in positive.items():
        _check_integer(name, value, least=1)
    for name, value in {
        "data.num_workers": data.num_workers,
        "prefetch": config.prefetch,
        "seed": config.seed,
    }.items():
        _check_integer(name, value, least=0)
    if data.on_error not in ("raise", "skip"):
        raise UserError(f"config.data.on_error must be 'raise' or 'skip', got {data.on_error!r}")
    recipes.check(pp)


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"config.{name} must be an integer of at least {least}, got {value!r}")

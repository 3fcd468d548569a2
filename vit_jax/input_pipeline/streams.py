"""Streams of batches, which threads or worker processes of one or several hosts make ahead."""

import concurrent.futures
import dataclasses
import os
import signal
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import Self

import grain
import numpy as np

from vit_jax.errors import UserError
from vit_jax.input_pipeline import shared_batches
from vit_jax.input_pipeline.order import LocalRows

Batch = dict[str, np.ndarray]

# Seconds for which a worker process goes on after SIGTERM.
_GRACE = 20


@dataclasses.dataclass(frozen=True)
class Reading:
    """The way in which batches are read, which does not change their content.

    Attributes:
      num_workers: Number of worker processes that decode and augment; 0 uses threads of this
        process.
      prefetch: Number of batches that are made ahead.
      process_index, process_count: Number of this host, and number of hosts that train together.
        Host p of n reads rows [p * B / n, (p + 1) * B / n) of every batch of B.
    """

    num_workers: int = 0
    prefetch: int = 2
    process_index: int = 0
    process_count: int = 1

    def local(self, batch_size: int) -> int:
        """The number of rows that this host reads of a batch of `batch_size` rows.

        Raises:
          UserError: if the batch does not divide evenly among the hosts.
        """
        if batch_size % self.process_count:
            raise UserError(
                f"a batch of {batch_size} does not divide among {self.process_count} processes"
            )
        return batch_size // self.process_count


IN_THREADS = Reading()


class Batches(Iterator[Batch]):
    """A stream of batches; closing it ends its threads or worker processes.

    The stream is also a context manager, which closes it. Its only state is the number of the next
    batch: `TrainDataset.iterate(step)` goes on from any step, on any number of hosts.

    Args:
      examples: Examples of the global batches, in order.
      batch_size: Number of rows in a batch, over all hosts.
      reading: Threads, worker processes and hosts that read the batches.
      start: Number of the first batch.
      note: Function that is called with every batch before the batch is handed out.
    """

    def __init__(
        self,
        examples: grain.MapDataset,
        batch_size: int,
        reading: Reading,
        start: int = 0,
        note: Callable[[Batch], None] = lambda batch: None,
    ):
        rows = reading.local(batch_size)
        examples = LocalRows(examples, batch_size, reading.process_index, rows)[start * rows :]
        self._note, self._inbox, place = note, None, None
        if reading.num_workers:
            place = shared_batches.directory()
            self._inbox = shared_batches.Inbox()
            outbox = shared_batches.Outbox(examples, rows, place.name)
            stream = _from_workers(outbox, reading)
        else:
            stream = _from_threads(examples, rows, reading)
        # `_end` empties the list once: when the stream is closed, when it is garbage collected, or
        # at an early stage of the process's exit, whichever comes first.
        self._stream = [stream]
        self._end = weakref.finalize(self, _end, self._stream, place)

    def __next__(self) -> Batch:
        if not self._stream:
            raise StopIteration
        batch = next(self._stream[0])
        if self._inbox is not None:
            batch = self._inbox.open(batch)
        self._note(batch)
        return batch

    def close(self) -> None:
        """Ends the threads or worker processes; the stream gives no batches afterwards."""
        if self._stream:
            _close_workers(self._stream[0])
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _close_workers(batches: grain.DatasetIterator) -> None:
    """Closes all workers at once; Grain would wait a second for each, one after the other."""
    workers = getattr(
        batches, "_iterators_in_use", ()
    )  # An entry is None until its worker is started.
    with concurrent.futures.ThreadPoolExecutor(max(len(workers), 1)) as pool:
        for worker in filter(None, workers):
            pool.submit(worker.close)


def _end(stream: list[grain.DatasetIterator], place: tempfile.TemporaryDirectory | None) -> None:
    batches = stream.pop()
    batches.close()
    del batches  # If Grain cleaned up only at exit, the modules it needs would be gone by then.
    if place is not None:
        place.cleanup()


# --- made ahead ----------------------------------------------------------------------------------


def _from_threads(examples: grain.MapDataset, rows: int, reading: Reading) -> grain.DatasetIterator:
    # A thread makes single examples and not batches, so that the first batch is ready sooner and
    # fewer examples are in memory.
    ahead = rows * max(1, reading.prefetch)
    options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=ahead)
    return iter(examples.to_iter_dataset(options).batch(rows))


def _from_workers(outbox: shared_batches.Outbox, reading: Reading) -> grain.DatasetIterator:
    _parse_absl_flags()
    # A worker makes every num_workers-th batch, one whole batch at a time. Threads within a worker
    # would only make it hold more batches at once.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    workers = grain.MultiprocessingOptions(
        num_workers=reading.num_workers,
        per_worker_buffer_size=-(-max(1, reading.prefetch) // reading.num_workers),
    )
    batches = outbox.to_iter_dataset(options)
    return iter(batches.mp_prefetch(workers, worker_init_fn=_prepare_worker))


def _prepare_worker(worker_index: int, worker_count: int) -> None:
    import cv2

    # The workers run in parallel already; OpenCV's threads in each of them would overload the
    # cores.
    cv2.setNumThreads(1)
    # A cluster sends SIGTERM to every process of a job. The worker goes on for a while, so that the
    # run can finish and save its last step.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _parse_absl_flags() -> None:
    """Marks absl's flags as parsed, because Grain sends the parsed flags to its workers."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

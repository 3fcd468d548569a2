"""Streams of batches: made ahead in threads or worker processes, by one host or several."""

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

# Seconds that a worker goes on after SIGTERM.
_GRACE = 20


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


IN_THREADS = Reading()


class Batches(Iterator[Batch]):
    """A stream of batches that can be closed, which ends its threads or worker processes.

    Also a context manager that closes itself. It has no state to save beyond the number of the
    next batch: `TrainDataset.iterate(step)` goes on from any step, on any number of hosts.

    Args:
      examples: What every global batch's examples come from, in order.
      batch_size: Rows of a batch, over all hosts.
      reading: How.
      start: Number of the first batch.
      note: Called with every batch before it is handed out.
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
        # Emptied when this is closed, or forgotten, or at the process's exit while that is still
        # orderly: whichever comes first.
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


def _end(stream: list[grain.DatasetIterator], place: tempfile.TemporaryDirectory | None) -> None:
    batches = stream.pop()
    batches.close()
    del batches  # Grain's own clean-up, at exit, would find its modules gone.
    if place is not None:
        place.cleanup()


# --- made ahead ----------------------------------------------------------------------------------


def _from_threads(examples: grain.MapDataset, rows: int, reading: Reading) -> grain.DatasetIterator:
    # Threads take single examples: the first batch is ready sooner, and memory is bounded.
    ahead = rows * max(1, reading.prefetch)
    options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=ahead)
    return iter(examples.to_iter_dataset(options).batch(rows))


def _from_workers(outbox: shared_batches.Outbox, reading: Reading) -> grain.DatasetIterator:
    _parse_absl_flags()
    # A worker takes every num_workers-th batch, whole, one at a time; threads of its own would
    # only make it hold more of them.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    workers = grain.MultiprocessingOptions(
        num_workers=reading.num_workers,
        per_worker_buffer_size=-(-max(1, reading.prefetch) // reading.num_workers),
    )
    batches = outbox.to_iter_dataset(options)
    return iter(batches.mp_prefetch(workers, worker_init_fn=_prepare_worker))


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

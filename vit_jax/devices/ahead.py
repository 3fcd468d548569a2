"""Items that a thread makes before they are asked for."""

import queue
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

# Seconds that closing waits for an item that is being made. A read that never returns must not keep
# a process that wants to end.
_GRACE = 10


class Ahead(Iterator[T], Generic[T]):
    """The same items in the same order, of which a thread makes up to `count` ahead.

    An error of the items is raised in their place. Closing ends the thread; so does the end of the
    items, an error, and forgetting the object. It is also a context manager, which closes it.

    Args:
      items: The items. Only the thread touches them, until it has ended.
      count: The number of items that may lie ready, at least 1.
    """

    def __init__(self, items: Iterable[T], count: int):
        self._ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._wanted, stop = threading.Semaphore(count), threading.Event()
        # The thread holds no reference to this object, which could otherwise not be forgotten.
        # A daemon, because Python waits for the end of all other threads before it ends.
        thread = threading.Thread(
            target=_make, args=(iter(items), self._wanted, stop, self._ready), daemon=True
        )
        self._end = weakref.finalize(self, _end, thread, self._wanted, stop)
        thread.start()

    def __next__(self) -> T:
        if not self._end.alive:
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        self._wanted.release()
        return item

    def close(self) -> None:
        """Ends the thread, and waits for the item that it is making; no items are given after."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _make(
    items: Iterator[Any],
    wanted: threading.Semaphore,
    stop: threading.Event,
    ready: queue.SimpleQueue[tuple[Any, BaseException | None]],
) -> None:
    while True:
        wanted.acquire()
        if stop.is_set():
            return
        try:
            ready.put((next(items), None))
        except BaseException as error:  # Whatever it is, it belongs to whoever asks for the item.
            ready.put((None, error))
            return


def _end(thread: threading.Thread, wanted: threading.Semaphore, stop: threading.Event) -> None:
    stop.set()
    wanted.release()
    if thread is not threading.current_thread():
        thread.join(_GRACE)

"""`workdir/trackers.json`: by which keys the trackers find a run again when it is restarted."""

import json
import os
import pathlib
import threading

FILE = "trackers.json"
_WRITING = threading.Lock()  # Each tracker saves its key in a thread of its own.


def load(folder: str | os.PathLike) -> dict[str, str]:
    """The keys by the trackers' names; empty before the first start, or if they cannot be read."""
    try:
        keys = json.loads((pathlib.Path(folder) / FILE).read_text())
        return {name: key for name, key in keys.items() if isinstance(key, str)}
    except (OSError, ValueError, AttributeError):
        return {}


def save(folder: str | os.PathLike, name: str, key: str) -> None:
    """Adds the key of one tracker; the file is replaced as a whole.

    Raises:
      OSError: if it cannot be written.
    """
    path = pathlib.Path(folder) / FILE
    with _WRITING:
        temporary = path.with_name(f".{FILE}.tmp")
        temporary.write_text(json.dumps(load(folder) | {name: key}, indent=2) + "\n")
        temporary.replace(path)

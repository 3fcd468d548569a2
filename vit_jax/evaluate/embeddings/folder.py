"""What a folder of embeddings says of itself: what is embedded, and which shards are finished."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

from vit_jax import json_text, stores
from vit_jax.checkpoint.files.archive import replacing
from vit_jax.errors import UserError, short
from vit_jax.tree import flatten

MANIFEST, JOURNAL = "_embeddings.json", "_journal"
_VERSION = 1
_ENTRY = re.compile(r"(\d{6,})\.json")
# Where the model and the data lie, and how many processes write, may change between two starts.
_PLACES = ("model/path", "model/how", "data/inputs", "data/split", "data/tfds_data_dir")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is embedded, and how: what must not change until all of it is.

    Attributes:
      model: 'path', 'how' (the other arguments of `loaded.load`), 'name', 'weights' (a digest of
        all parameters) and 'preprocess'.
      data: 'inputs', 'split', 'tfds_data_dir', 'description', 'examples' (their number), 'digest'
        (of names and labels), 'classes' (their names) and 'labels' ('none', 'one' or 'several').
      vectors: What is computed of each image, and its shape: {'features': [768]}.
      dtype: 'float32' or 'float16'.
      format: A key of `shards.FORMATS`.
      shard_size: Examples of a shard; shard k is of the examples from k · shard_size on.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    vectors: Mapping[str, list[int]]
    dtype: str
    format: str
    shard_size: int

    @property
    def examples(self) -> int:
        """How many examples there are in all."""
        return self.data["examples"]

    @property
    def shards(self) -> int:
        """How many shards there are when all are written."""
        return -(-self.examples // self.shard_size)

    def count(self, shards: Iterable[int]) -> int:
        """How many examples some shards are of."""
        return sum(len(self.range(shard)) for shard in shards)

    def range(self, shard: int) -> range:
        """The numbers of a shard's examples."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.examples))

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json_text.dumps({"version": _VERSION, **vars(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError for what is no manifest of this version."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("version", None) != _VERSION:
            raise ValueError(f"it is not of version {_VERSION}")
        if fields.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"it has the fields {sorted(fields)}")
        return cls(**fields)

    def differences(self, other: Self) -> list[str]:
        """What is not as in another manifest, each as `name: this, not that`."""
        ours, theirs = (flatten(json.loads(m.to_json())) for m in (self, other))
        return [
            f"{name}: {short(str(ours.get(name)))}, not {short(str(theirs.get(name)))}"
            for name in sorted(ours.keys() | theirs.keys())
            if not name.startswith(_PLACES) and ours.get(name) != theirs.get(name)
        ]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A finished shard.

    Attributes:
      rows: How many of its examples have vectors.
      left_out: Number, name and error of each that could not be read.
    """

    rows: int
    left_out: list[list[Any]]


class Folder:
    """A folder of embeddings, or the address of one in a store.

    Args:
      place: Its path or address.
    """

    def __init__(self, place: str | os.PathLike[str]):
        self.place = os.fspath(place)

    def exists(self) -> bool:
        """Whether embeddings were begun here."""
        return stores.is_file(self._path(MANIFEST))

    def manifest(self) -> Manifest:
        """What is embedded here.

        Raises:
          UserError: for a folder without embeddings, or of another version.
        """
        path = self._path(MANIFEST)
        try:
            return Manifest.from_json(stores.read_bytes(path))
        except FileNotFoundError:
            raise UserError(
                f"{self.place} holds no embeddings: expected a folder that `vit-jax embed MODEL "
                f"DATA --out {self.place}` has written"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"cannot read {path}, which vit-jax embed wrote: {error}") from error

    def begin(self, manifest: Manifest) -> None:
        """Writes the manifest.

        Raises:
          UserError: if the folder holds other files, or cannot be written.
        """
        if not stores.is_address(self.place):
            try:
                found = os.listdir(self.place) if os.path.exists(self.place) else []
                # A start that was killed may have left its journal, and files that begin so.
                others = [name for name in found if name != JOURNAL and not name.startswith(".")]
                if others:
                    raise UserError(
                        f"{self.place} holds {others[0]!r} and no embeddings: name another folder "
                        "by --out"
                    )
                os.makedirs(os.path.join(self.place, JOURNAL), exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot write {self.place}: {error.strerror}") from error
        self._write(MANIFEST, manifest.to_json())

    def require(self, manifest: Manifest) -> None:
        """Raises UserError if what is embedded here is not what `manifest` says."""
        if different := self.manifest().differences(manifest):
            raise UserError(
                f"{self.place} holds embeddings of another model, other data or other settings: "
                f"{'; '.join(different[:4])}. Give what it was begun with to go on with it, or "
                "another folder by --out"
            )

    def finished(self) -> list[int]:
        """The sorted numbers of the finished shards."""
        try:
            names = [entry.name for entry in stores.scan(self._path(JOURNAL))]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"cannot read {self.place}: {error.strerror}") from error
        return sorted(int(match[1]) for name in names if (match := _ENTRY.fullmatch(name)))

    def entry(self, shard: int) -> Entry:
        """What was written of a finished shard.

        Raises:
          UserError: if it cannot be read.
        """
        path = self._path(*_entry(shard))
        try:
            return Entry(**json.loads(stores.read_bytes(path)))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"cannot read {path}, which vit-jax embed wrote: {error}") from error

    def finish(self, shard: int, entry: Entry) -> None:
        """Notes that a shard is written; its files must be in their places."""
        self._write(stores.join(*_entry(shard)), json_text.dumps(vars(entry)))

    def file(self, shard: int, ending: str) -> str:
        """The path of a shard's file, `shard-000012` with an ending."""
        return self._path(f"shard-{shard:06}{ending}")

    def clear(self, shard: int) -> None:
        """Removes what a process that was killed has left of a shard under temporary names."""
        if stores.is_address(self.place):  # where nothing is written under another name
            return
        name = f".shard-{shard:06}."
        for entry in os.scandir(self.place):
            if entry.name.startswith(name) and entry.name.endswith(".tmp"):
                os.unlink(entry.path)

    def _path(self, *names: str) -> str:
        return stores.join(self.place, *names)

    def _write(self, name: str, text: str) -> None:
        with replacing(self._path(name)) as file:
            file.write(text.encode("utf-8", "backslashreplace"))


def _entry(shard: int) -> tuple[str, str]:
    return JOURNAL, f"{shard:06}.json"

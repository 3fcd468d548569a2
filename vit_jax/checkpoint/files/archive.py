"""What all readers give and all writers use: lazy named tensors, and files that appear whole."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, NamedTuple

import ml_dtypes
import numpy as np

from vit_jax import stores
from vit_jax.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Spec(NamedTuple):
    """Shape and dtype of a tensor that has not been read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        # Python integers: an absurd shape in a hostile file must not overflow.
        size = self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size

    def dummy(self) -> np.ndarray:
        """An array of this shape and dtype that takes no memory."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)


class Archive(Mapping[str, np.ndarray]):
    """The tensors of one file; each is read when asked for. Close it, or use `with`.

    Attributes:
      path: The file, or Orbax's directory.
      format: 'npz', 'safetensors', 'torch', 'flax' or 'orbax'.
      specs: Shape and dtype of every tensor, known without reading it.
      metadata: Text that the file carries beside its tensors.
      files: What it is read from: `path`, and further files where there are several.
    """

    format = ""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.specs: dict[str, Spec] = {}
        self.metadata: dict[str, str] = {}
        self.files: tuple[pathlib.Path, ...] = (self.path,)

    def read(self, name: str) -> np.ndarray:
        """The tensor; readers override this."""
        raise NotImplementedError

    def read_slice(self, name: str, index: int) -> np.ndarray:
        """`read(name)[index]`; readers that can do with less override this."""
        return self.read(name)[index]

    def slice(self, name: str, index: int) -> np.ndarray:
        """One layer of a stacked tensor, without holding the others in memory if possible."""
        with reading(self.path, self.format):
            return self.read_slice(name, index)

    def close(self) -> None:
        """Readers with an open file override this."""

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.specs:
            raise KeyError(name)
        with reading(self.path, self.format):
            return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def as_bytes(x: np.ndarray) -> memoryview:
    """The memory of a C-contiguous array."""
    return memoryview(x.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType]


class View(Mapping[str, np.ndarray]):
    """A lazy view of an archive: some of its tensors, or slices of them, under other names.

    Args:
      archive: What is looked at.
      names: New name -> old name, and which slice of its leading axis (None: all of it).
    """

    def __init__(self, archive: Archive, names: Mapping[str, tuple[str, int | None]]):
        self._archive, self._names = archive, names
        self.specs = {
            new: archive.specs[old]
            if index is None
            else Spec(archive.specs[old].shape[1:], archive.specs[old].dtype)
            for new, (old, index) in names.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        old, index = self._names[name]
        return self._archive[old] if index is None else self._archive.slice(old, index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Renamed(Mapping[str, np.ndarray]):
    """A lazy mapping under other names, {new: old}."""

    def __init__(self, source: Mapping[str, np.ndarray], names: Mapping[str, str]):
        self._source, self._old = source, names

    @property
    def specs(self) -> dict[str, Spec] | None:
        """Shapes and dtypes, where the source knows them without reading; None otherwise."""
        specs = getattr(self._source, "specs", None)
        return specs and {new: specs[old] for new, old in self._old.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._source[self._old[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._old)

    def __len__(self) -> int:
        return len(self._old)


class Edited(Mapping[str, np.ndarray]):
    """A lazy mapping with some tensors changed, some dropped and some added."""

    def __init__(
        self,
        source: Mapping[str, np.ndarray],
        *,
        changed: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
        dropped: Iterable[str] = (),
        added: Mapping[str, Callable[[], np.ndarray]] | None = None,
    ):
        self._source, self._changed, self._added = source, changed or {}, added or {}
        gone = {*dropped, *self._added}
        self._names = [*(n for n in source if n not in gone), *self._added]

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._added:
            return self._added[name]()
        x = self._source[name]
        return self._changed[name](x) if name in self._changed else x

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Turns whatever a parser raises on broken or hostile bytes into one UserError.

    Zip, JSON, NumPy's and torch's parsers raise a dozen unrelated types on bad input, so the
    net is wide on purpose; it holds parsing only. What says that a program is wrong passes, where
    no parser of another package raised it.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"cannot read {str(path)!r}: {e.strerror or e}") from e
    except Exception as e:
        if isinstance(e, _BUGS) and not _is_a_parsers(e):
            raise
        reason = str(e).strip().split("\n")[0][:200] or type(e).__name__
        raise UserError(f"{str(path)!r} is no readable {kind} file: {reason}") from e


_BUGS = (AssertionError, AttributeError, NameError, NotImplementedError, TypeError)
_PARSERS = {
    *("ast", "codecs", "json", "pickle", "struct", "zipfile", "zlib"),
    *("etils", "flax", "jax", "ml_dtypes", "msgpack", "numpy", "orbax", "safetensors"),
    *("tensorstore", "torch"),
}


def _is_a_parsers(error: BaseException) -> bool:
    """Whether the code that raised this is one of the packages that read files for us."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    name = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return name.partition(".")[0] in _PARSERS


@contextlib.contextmanager
def replacing(path: str | os.PathLike, nbytes: int = 0) -> Iterator[IO[bytes]]:
    """A file open for writing that takes the place of `path` only when the block succeeds.

    On any failure `path` is as it was, and nothing else is left behind. OSError becomes UserError.
    For an address the file is written on this machine's disk, and then goes to the store.

    Args:
      path: Where to.
      nbytes: How many bytes will be written at the least. Room for them is set aside at once.
    """
    if stores.is_address(path):
        with _uploaded(path) as local, open(local, "wb") as f:
            _reserve(f, nbytes)
            yield f
        return
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {str(path)!r}: it is a directory")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            _reserve(f, nbytes)
            yield f
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {str(path)!r}: {e.strerror or e}") from e
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _reserve(f: IO[bytes], nbytes: int) -> None:
    """Has the disk set room aside: a full one says so before anything is written.

    Nor has the file system to find a place for every page, which takes longer than copying it.
    """
    if not nbytes or not hasattr(os, "posix_fallocate"):  # macOS has none
        return
    try:
        os.posix_fallocate(f.fileno(), 0, nbytes)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some file systems cannot
            raise


@contextlib.contextmanager
def replacing_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """As `replacing`: an empty directory to fill, which takes the place of `path` at the end.

    In a store, files replace each other one by one. Those by which a directory of weights is known
    come last.
    """
    if stores.is_address(path):
        with _uploaded(path) as local:
            local.mkdir()
            yield local
        return
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as e:
        if old.exists():
            os.replace(old, path)
        raise UserError(f"cannot write {str(path)!r}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


# By these a directory is known for one of weights.
_KNOWN_BY = ("_METADATA", "config.json")


@contextlib.contextmanager
def _uploaded(address: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A local path whose file or directory goes to a store when the block succeeds."""
    target = stores.path(address)
    with tempfile.TemporaryDirectory(prefix="vit_jax_") as folder:
        local = pathlib.Path(folder) / target.name
        try:
            yield local
            if local.is_file():
                stores.upload([local], [target])
                return
            files = {f.relative_to(local).as_posix(): f for f in local.rglob("*") if f.is_file()}
            left = stores.files_below(target).keys() - files.keys()
            last = [name for name in files if name in _KNOWN_BY]
            for names in ([name for name in files if name not in last], last):
                stores.upload([files[n] for n in names], [target / n for n in names])
            stores.remove([target / name for name in left])
        except OSError as e:
            raise UserError(f"cannot write {stores.address(address)!r}: {e.strerror or e}") from e


def to_numpy(x) -> np.ndarray:
    """A NumPy array of a NumPy, JAX or torch array, dtype preserved; shares memory if it can."""
    if hasattr(x, "detach"):  # torch: NumPy has no bfloat16, so its bits pass as integers
        x = x.detach().cpu()
        if str(x.dtype) == "torch.bfloat16":
            import torch

            return x.contiguous().view(torch.int16).numpy().view(BFLOAT16)
    return np.asarray(x)

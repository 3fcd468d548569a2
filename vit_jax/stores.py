"""Files on object stores, `gs://`, `s3://` and every other scheme that fsspec reads, as paths.

This is the one place that tells an address from a path on a disk. Credentials are those that the
store's own tools find (`gcloud auth application-default login`, `AWS_PROFILE`, the machine's role,
…): nothing here takes a key. fsspec is imported when the first address is met.
"""

import contextlib
import errno
import glob
import hashlib
import io
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.errors import UserError

if TYPE_CHECKING:
    from upath import UPath

Location = str | os.PathLike[str]

# One slash is enough: pathlib makes `gs:/bucket/name` of `gs://bucket/name`. Two letters at least:
# one is a drive.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)")
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # scheme -> extra of this package


def address(location: "Location | UPath") -> str | None:
    """The address in its usual spelling, `scheme://…`; None for a path on a disk."""
    match = _ADDRESS.fullmatch(_text(location))
    return f"{match[1].lower()}://{match[2]}" if match else None


def _text(location: "Location | UPath") -> str:
    return os.fspath(location) if isinstance(location, os.PathLike) else str(location)


def is_address(location: "Location | UPath") -> bool:
    """Whether this is an address and no path on a disk."""
    return address(location) is not None


def path(location: "Location | UPath") -> Any:
    """A `pathlib.Path`, or for an address an object with its methods.

    What is listed of a store is what lies there now. Only paths on a disk are `os.PathLike`; the
    text of both is `str(path)`. Errors of a store are of many kinds: put `as_os_errors` around the
    calls.

    Raises:
      UserError: for a scheme that is unknown, or whose package is not installed.
    """
    where = address(location)
    if where is None:
        return pathlib.Path(_text(location))
    _require_scheme(where)
    # It logs, with tracebacks, what it also raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    from upath import UPath

    return UPath(where, use_listings_cache=False)


def join(folder: Location, *names: str) -> str:
    """The path or address of something below a folder."""
    where = address(folder)
    return os.path.join(folder, *names) if where is None else "/".join((where.rstrip("/"), *names))


def is_file(location: Location) -> bool:
    """`os.path.isfile`; UserError if a store cannot be asked."""
    return _asked(location, "is_file") if is_address(location) else os.path.isfile(location)


def is_dir(location: Location) -> bool:
    """`os.path.isdir`; UserError if a store cannot be asked."""
    return _asked(location, "is_dir") if is_address(location) else os.path.isdir(location)


def exists(location: Location) -> bool:
    """`os.path.exists`; UserError if a store cannot be asked."""
    return _asked(location, "exists") if is_address(location) else os.path.exists(location)


def _asked(location: Location, question: str) -> bool:
    try:
        with as_os_errors():
            return getattr(path(location), question)()
    except OSError as error:
        raise UserError(f"cannot read {location}: {error.strerror}") from error


def absolute(location: Location) -> str:
    """The whole path, or the address, without a slash at its end."""
    where = address(location)
    return os.path.abspath(location) if where is None else where.rstrip("/")


class Entry(NamedTuple):
    """What lies in a folder of a store, with the methods of `os.DirEntry` that are used here."""

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        return self.folder

    def is_file(self) -> bool:
        return not self.folder


def scan(folder: Location) -> "list[os.DirEntry[str]] | list[Entry]":
    """What lies in a folder, in no order.

    Raises:
      OSError: if it cannot be listed.
      UserError: as `path`.
    """
    if not is_address(folder):
        return list(os.scandir(folder))
    where = path(folder)
    with as_os_errors():
        found = {
            info["name"].rstrip("/").rpartition("/")[2]: info["type"] == "directory"
            for info in where.fs.ls(where.path, detail=True)
            # Some stores list a folder that was made as an object of its own.
            if where.fs._strip_protocol(info["name"]) != where.fs._strip_protocol(where.path)
        }
    return [Entry(name, join(folder, name), is_folder) for name, is_folder in found.items()]


def read_bytes(location: Location) -> bytes:
    """The content of a file.

    Raises:
      OSError: if it cannot be read, whatever its store raises.
      UserError: as `path`.
    """
    if not is_address(location):
        with open(location, "rb") as file:
            return file.read()
    where = path(location)
    with as_os_errors():
        return where.fs.cat_file(where.path)


def modified(location: Location) -> float:
    """When a file was last written, in seconds since 1970.

    Raises:
      OSError: if it cannot be asked.
      UserError: as `path`.
    """
    if not is_address(location):
        return os.stat(location).st_mtime
    where = path(location)
    with as_os_errors():
        return where.fs.modified(where.path).timestamp()


def matching(pattern: str) -> list[str]:
    """The sorted paths or addresses that a pattern with `*`, `?` and `[…]` means.

    Raises:
      UserError: if a store cannot be asked.
    """
    if not is_address(pattern):
        return sorted(glob.glob(os.path.expanduser(pattern)))
    where = path(pattern)
    try:
        with as_os_errors():
            return sorted(where.fs.unstrip_protocol(name) for name in where.fs.glob(where.path))
    except OSError as error:
        raise UserError(f"cannot read {pattern}: {error.strerror}") from error


def readable(location: Location) -> Any:
    """What NumPy, pyarrow and others read a file from: its path, or its content from a store."""
    return io.BytesIO(read_bytes(location)) if is_address(location) else location


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
    """Turns what a store's client raises into an OSError whose `strerror` says why, in one line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.strerror:
            raise
        kinds = (number for kind, number in _ERRNO.items() if isinstance(error, kind))
        raise OSError(next(kinds, error.errno or errno.EIO), _first_line(error)) from error
    except Exception as error:  # each client has its own
        raise OSError(errno.EIO, _first_line(error)) from error


_ERRNO = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
}


def _first_line(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return os.strerror(errno.ENOENT)
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")


def _require_scheme(where: str) -> None:
    import fsspec

    scheme = where.partition(":")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f'pip install "vit-jax[{extra}]"' if extra else str(error)
        raise UserError(
            f"{where}: the package that reads {scheme}:// is not installed: {remedy}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{where}: nothing reads addresses of {scheme}://; stores are gs://, s3:// and what "
            "else fsspec knows"
        ) from error


def cache_folder(folder: Location | None = None) -> pathlib.Path:
    """Where downloads are kept: `folder`, or else $VIT_JAX_CACHE or `~/.cache/vit_jax`."""
    chosen = folder or os.environ.get("VIT_JAX_CACHE") or "~/.cache/vit_jax"
    return pathlib.Path(chosen).expanduser()


def download(files: "Sequence[UPath]", targets: Sequence[pathlib.Path]) -> None:
    """Copies files of one store to local files, several at a time; folders are made.

    Raises:
      OSError: if one of them cannot be read or written.
    """
    if files:
        with as_os_errors():
            files[0].fs.get([f.path for f in files], [str(t) for t in targets])


def upload(files: Sequence[pathlib.Path], targets: "Sequence[UPath]") -> None:
    """Copies local files to one store, several at a time; each appears whole or not at all.

    Raises:
      OSError: if one of them cannot be read or written.
    """
    if files:
        with as_os_errors():
            targets[0].fs.put([str(f) for f in files], [t.path for t in targets])


def remove(files: "Sequence[UPath]", recursive: bool = False) -> None:
    """Removes files of one store, or folders too; those that are gone already are no error.

    Raises:
      OSError: if the store refuses.
    """
    if files:
        with as_os_errors(), contextlib.suppress(FileNotFoundError):
            files[0].fs.rm([f.path for f in files], recursive=recursive)


# How stores call what changes with a file's content, or with its writing.
_VERSIONS = ("ETag", "etag", "md5Hash", "crc32c", "generation", "LastModified", "mtime", "created")


def version(address: str, files: Mapping[str, dict[str, Any]]) -> str:
    """A short name for what a folder of a store holds now, by what `files_below` says of it."""
    seen = [
        (name, info.get("size"), *(str(info[v]) for v in _VERSIONS if v in info))
        for name, info in sorted(files.items())
    ]
    return hashlib.sha256(json.dumps([address, seen]).encode()).hexdigest()[:16]


def files_below(folder: "UPath") -> "dict[str, dict[str, Any]]":
    """What fsspec says of every file below a folder of a store, by its path relative to that.

    Raises:
      OSError: if the store cannot be listed.
    """
    system: Any = folder.fs
    with as_os_errors():
        try:
            found = system.find(folder.path, detail=True)
        except FileNotFoundError:
            return {}
    root = system._strip_protocol(folder.path).rstrip("/") + "/"
    return {name.removeprefix(root): info for name, info in found.items() if name != root}

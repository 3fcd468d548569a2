"""From a checkpoint's address to a local file, downloaded once and kept by the address's hash."""

import contextlib
import hashlib
import importlib.util
import logging
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import IO
from urllib.parse import urlsplit

from vit_jax import __version__, stores, waiting
from vit_jax.checkpoint.files import hub
from vit_jax.checkpoint.files.archive import replacing
from vit_jax.checkpoint.files.folders import fetch_folder
from vit_jax.errors import UserError
from vit_jax.families import published as catalogue

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


class _NotFetchedError(Exception):
    """Why an address gave no file."""


class _RefusedError(_NotFetchedError):
    """The server answered, but not with the file."""


class _FolderError(_NotFetchedError):
    """The address is that of a folder."""


def fetch(location: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """The local file of a path or an address.

    Args:
      location: A path, which is returned as it is, whether or not there is such a file; or an
        address: `https://…`, `gs://…` (by https; a private bucket with gcsfs and the user's
        credentials), `hf://org/name[@revision][/file]` (see `fetch_hub`, which has a cache of its
        own), or any other that an installed fsspec file system reads (`s3://`). In a store it may
        be a folder with a checkpoint, see `fetch_folder`.
      cache_dir: Where downloads are kept; by default $VIT_JAX_CACHE or `~/.cache/vit_jax`. Beside
        each file stands its SHA-256, and a file that no longer matches it is fetched anew.

    Raises:
      UserError: if the file cannot be had or not be written; for a published checkpoint the message
        names who else holds its weights. Nothing incomplete stays behind.
    """
    address = stores.address(location)
    if address is None:
        return pathlib.Path(location)
    if (repository := hub.parse(address)) is not None:
        return hub.fetch_hub(repository)
    path = stores.cache_folder(cache_dir) / _name(address)
    if not _is_intact(path):
        try:
            _download(address, path)
        except _FolderError:
            return fetch_folder(address, stores.cache_folder(cache_dir))
        except _NotFetchedError as e:
            raise UserError(f"cannot fetch {address}: {e}.{_elsewhere(address)}") from e
    return path


def _name(address: str) -> str:
    """A file name that no other address has; `gs://` and its https form are one address."""
    file = catalogue.gcs_file(address)
    readable = re.sub(r"[^\w.+-]", "_", urlsplit(file).path.rsplit("/", 1)[-1])
    return f"{hashlib.sha256(file.encode()).hexdigest()[:16]}-{readable[-160:]}"


def _checksum(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")


def _is_intact(path: pathlib.Path) -> bool:
    try:
        recorded = _checksum(path).read_text().split()[:1]
        with open(path, "rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    except OSError as e:
        raise UserError(f"cannot read the cached {str(path)!r}: {e.strerror or e}") from e
    if recorded != [found]:
        log.warning("%s is not what was downloaded; fetching it again", path)
    return recorded == [found]


def _download(address: str, path: pathlib.Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot write to {str(path.parent)!r}: {e.strerror or e}") from e
    digest, received = hashlib.sha256(), 0
    stream, size = _open(address)
    with stream, replacing(path) as f, _progress(path.name.partition("-")[2], size) as advance:
        for chunk in _chunks(stream):
            f.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            advance(len(chunk))
        if size is not None and received != size:
            raise _NotFetchedError(f"the connection broke off after {received} of {size} bytes")
    with replacing(_checksum(path)) as f:
        f.write(f"{digest.hexdigest()}  {path.name}\n".encode())


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """The stream's bytes. Its errors must not pass for those of the disk that is written to."""
    while True:
        try:
            chunk = stream.read(_CHUNK)
        except Exception as e:  # each client has its own
            raise _NotFetchedError(f"the connection broke off ({e or type(e).__name__})") from e
        if not chunk:
            return
        yield chunk


def _open(address: str) -> tuple[IO[bytes], int | None]:
    """The file, open for reading, and its size where that is known."""
    scheme = address.partition(":")[0]
    if scheme in ("http", "https"):
        return _open_http(address)
    if scheme != "gs":
        return _open_fsspec(address)
    try:
        return _open_http(catalogue.gcs_url(address))
    except _RefusedError:
        if importlib.util.find_spec("gcsfs") is None:
            raise
        return _open_fsspec(address)


def _open_http(url: str) -> tuple[IO[bytes], int | None]:
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, headers={"User-Agent": f"vit-jax/{__version__}"})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as e:
        with e:
            raise _RefusedError(f"the server answered {e.code} ({e.reason})") from e
    except (OSError, http.client.HTTPException) as e:
        reason = getattr(e, "reason", None) or e
        host = urlsplit(url).netloc
        raise _NotFetchedError(f"{host} cannot be reached ({reason})") from e
    size = response.headers.get("Content-Length")
    return response, int(size) if size else None


def _open_fsspec(address: str) -> tuple[IO[bytes], int | None]:
    try:
        where = stores.path(address)
        with stores.as_os_errors():
            stream = None if where.is_dir() else where.fs.open(where.path, "rb")
    except OSError as e:
        raise _NotFetchedError(str(e.strerror or e).removesuffix(".")) from e
    if stream is None:
        raise _FolderError
    return stream, getattr(stream, "size", None)


def _elsewhere(address: str) -> str:
    """Where else the weights of a published checkpoint are, and how to get them back."""
    file = catalogue.gcs_file(address)
    row = catalogue.find(file)
    if row is not None and row.copy:
        model, target = shlex.quote(row.model), shlex.quote(file.rsplit("/", 1)[-1])
        note = f" ({row.note})" if row.note else ""
        return (
            f" The same weights are {' and '.join(_holders(row))}{note}; to have them as .npz: "
            f"`vit-jax convert {row.copy} {target} --to official --model {model}`"
        )
    names = [name for relative in catalogue.relatives(file) for name in _holders(relative)]
    if names:
        return f" No copy of these weights is known; others of the same model: {', '.join(names)}"
    return ""


def _holders(row: catalogue.Published) -> list[str]:
    names = [f"timm's {row.timm!r}"] if row.timm else []
    return names + ([f"Hugging Face's {row.hf!r}"] if row.hf else [])


@contextlib.contextmanager
def _progress(what: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of bytes that came; a bar where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    import rich.progress

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    console = waiting.console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=size)
        yield lambda count: bar.advance(task, count)

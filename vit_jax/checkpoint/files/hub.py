"""From a repository of the Hugging Face hub, `hf://org/name`, to local files.

`huggingface_hub` does the work: its cache (HF_HOME, HF_HUB_CACHE), its tokens (`hf auth login`,
HF_TOKEN), its progress, its endpoint (HF_ENDPOINT) and its offline mode (HF_HUB_OFFLINE=1). What it
does not do is done here: files are chosen, and compared with the hashes that the hub names them by.
"""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import pathlib
import re
from collections.abc import Collection
from typing import Any, NoReturn

from vit_jax import stores
from vit_jax.checkpoint.files import repository
from vit_jax.checkpoint.files.shards import INDEX
from vit_jax.errors import UserError, some
from vit_jax.families.text import TOKENIZER_FILES

log = logging.getLogger(__name__)

# What else fsspec finds below hf://, in repositories that hold no models.
_OTHER_KINDS = ("datasets", "spaces", "buckets", "kernels")
_MAIN = "main"
_ADDRESS = re.compile(
    r"hf://(?P<org>[^/@]+)/(?P<name>[^/@]+)"
    r"(@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(/(?P<file>.+?))?/*"
)
# Where the hub shows a file to everybody.
_PAGE = re.compile(
    r"https://huggingface\.co/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"
)
# How the cache lays a repository out: …/models--org--name/snapshots/COMMIT/…
_SNAPSHOT = re.compile(
    r".*/models--(?P<repo>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})/(?P<file>.+)"
)
_SHA256, _SHA1 = 64, 40  # hexadecimal digits


@dataclasses.dataclass(frozen=True)
class Address:
    """`hf://org/name[@revision][/file]`.

    Attributes:
      repo: 'org/name'.
      revision: A branch, a tag or a commit.
      file: Path in the repository; '' has the weights found.
    """

    repo: str
    revision: str = _MAIN
    file: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision == _MAIN else f"@{self.revision}"
        return f"hf://{self.repo}{revision}" + (f"/{self.file}" if self.file else "")


def parse(location: stores.Location) -> Address | None:
    """The parts of an address of a repository of models; None for any other location.

    The https address of a file of the hub is one of them where `huggingface_hub` is installed, so
    that its cache, its tokens, its endpoint and its offline mode serve there too.

    Raises:
      UserError: for `hf://` before what is no such address.
    """
    text = stores.address(location)
    if text is None:
        return None
    if (page := _PAGE.fullmatch(text)) and importlib.util.find_spec("huggingface_hub"):
        return Address(page["repo"], page["revision"].replace("%2F", "/"), page["file"])
    if not text.startswith("hf://"):
        return None
    if text.split("/")[2] in _OTHER_KINDS:
        return None
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise UserError(
            f"{text} is no repository of the hub: expected hf://ORGANISATION/NAME, with "
            "@REVISION or /FILE behind it if you like, such as hf://facebook/dinov2-base"
        )
    revision = (match["revision"] or _MAIN).replace("%2F", "/")
    return Address(f"{match['org']}/{match['name']}", revision, match["file"] or "")


def origin(path: pathlib.Path) -> str:
    """The address, with its commit, of a file in the hub's cache; '' for any other file."""
    match = _SNAPSHOT.fullmatch(path.as_posix())
    if match is None:
        return ""
    repo = match["repo"].replace("--", "/", 1)
    return str(Address(repo, match["commit"], match["file"]))


def repository_of(path: pathlib.Path) -> str:
    """'org/name' of a file in the hub's cache; '' for any other file."""
    address = parse(origin(path) or "-")
    return "" if address is None else address.repo


def fetch_hub(address: Address) -> pathlib.Path:
    """The local file of a repository's weights, what says what they are beside it.

    Of several files of weights safetensors come first, then `.npz`, then what torch wrote, which is
    read without running it. Of weights in shards it is their index. A repository that is in the
    cache serves where the hub cannot be reached.

    Raises:
      UserError: with one message, for a repository, a revision or a file that is not there, or may
        not be read; for files that came incomplete or damaged; where the hub cannot be reached; and
        where `huggingface_hub` is not installed.
    """
    repo = _Repository(address)
    files = repo.files
    name = address.file or repository.chosen(files, str(address))
    if name not in files:
        raise UserError(f"{address}: {_not_there(name, files)}")
    # First what is small, so that its errors are said before the weights come.
    folder, _, plain = name.rpartition("/")
    description = repository.description_of(plain)
    beside = (description, repository.PREPROCESSOR, repository.CARD)
    for file in filter(None, (*beside, *(TOKENIZER_FILES if description else ()))):
        found = f"{folder}/{file}" if folder else file
        if found in files:
            repo.local(found)
    path = repo.local(name)
    if name.endswith(INDEX):
        for shard in _shards(path, address):
            repo.local(f"{folder}/{shard}" if folder else shard)
    return path


def _not_there(name: str, files: Collection[str]) -> str:
    inside = sorted(f for f in files if f.startswith(f"{name}/"))
    if inside:
        return f"{name!r} is a folder; name a file of it, such as {inside[0]!r}"
    return f"it has no file {name!r}; it has {some(sorted(files), 12)}"


def _shards(index: pathlib.Path, address: Address) -> list[str]:
    try:
        found = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{address}: its {index.name} is damaged: {error}") from error
    return [str(name) for name in found]


class _Repository:
    """One repository at one commit, asked through `huggingface_hub`."""

    def __init__(self, address: Address):
        self._address = address
        self._hub = _library(address)
        self._folder: pathlib.Path | None = None  # of the cache, where the hub cannot be reached
        try:
            found = self._hub.HfApi().model_info(address.repo, revision=address.revision)
            self._revision = address.revision
            self.files = frozenset(file.rfilename for file in found.siblings or ())
        except Exception as error:  # of its own kinds, and of its HTTP client's
            if not _is_unreachable(error):
                _refuse(address, error)
            self._folder = self._cached(error)
            below = (f for f in self._folder.rglob("*") if f.is_file())
            self.files = frozenset(f.relative_to(self._folder).as_posix() for f in below)

    def local(self, file: str) -> pathlib.Path:
        """The file in the cache, downloaded if it is not there, and whole."""
        path = self._folder / file if self._folder is not None else self._download(file)
        if is_whole(path):
            return path
        if self._folder is None:
            log.warning("%s is not what the hub holds; fetching it again", path)
            path = self._download(file, force_download=True)
            if is_whole(path):
                return path
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        raise UserError(
            f"{self._address}: {file} is damaged: its hash is another than the hub's. Fetch it "
            "again, or name a mirror that holds it whole (HF_ENDPOINT)"
        )

    def _download(self, file: str, **options: Any) -> pathlib.Path:
        try:
            found = self._hub.hf_hub_download(
                self._address.repo, file, revision=self._revision, **options
            )
        except Exception as error:  # of its own kinds, of its HTTP client's, and of the disk
            _refuse(self._address, error, file)
        path = pathlib.Path(found)
        # The others are of the same commit, whatever becomes of the branch meanwhile.
        if match := _SNAPSHOT.fullmatch(path.as_posix()):
            self._revision = match["commit"]
        return path

    def _cached(self, error: Exception) -> pathlib.Path:
        """The folder of the cache that holds what was downloaded of this revision."""
        try:
            return pathlib.Path(
                self._hub.snapshot_download(
                    self._address.repo, revision=self._address.revision, local_files_only=True
                )
            )
        except self._hub.errors.IncompleteSnapshotError as incomplete:
            return pathlib.Path(incomplete.snapshot_path)
        except (self._hub.errors.LocalEntryNotFoundError, ValueError):
            _refuse(self._address, error)


def is_whole(path: pathlib.Path) -> bool:
    """Whether a file of the hub's cache has the hash that it is kept under.

    That is the SHA-256 of large files, and git's hash of small ones. A file that is kept otherwise
    passes.
    """
    kept = path.resolve().name
    if not re.fullmatch(r"[0-9a-f]+", kept) or len(kept) not in (_SHA256, _SHA1):
        return True
    with open(path, "rb") as file:
        if len(kept) == _SHA256:
            return hashlib.file_digest(file, "sha256").hexdigest() == kept
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == kept


def _library(address: Address) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            f"{address}: the package that reads the hub is not installed: "
            'pip install "vit-jax[hub]"'
        ) from error
    return huggingface_hub


def _is_unreachable(error: Exception) -> bool:
    """Whether the hub did not answer, or answered that it cannot now."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    # A client's errors of the connection are OSErrors here, and of kinds of its own there.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError) or bool(
        kinds & {"TransportError", "RequestException", "OfflineModeIsEnabled"}
    )


def _refuse(address: Address, error: Exception, file: str = "") -> NoReturn:
    """Raises the UserError that says why, and what to do next."""
    raise UserError(f"cannot fetch {address}: {_reason(address, error, file)}") from error


def _reason(address: Address, error: Exception, file: str) -> str:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{address.repo}"
    account = "give the token of your account: `hf auth login`, or HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated. Accept its conditions at {page}, then {account}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private ({page}). If it is, {account}"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"it has no revision {address.revision!r}: a branch, a tag or a whole commit. "
            f"{page}/commits/main lists them"
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return f"it has no file {file!r}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "it is not in the cache, and HF_HUB_OFFLINE is set. Unset it, and fetch it once"
    if isinstance(error, errors.HFValidationError):
        return f"that is no name of a repository: {_line(error)}"
    if "Consistency check failed" in str(error):
        return f"{file} came incomplete. Try again: nothing of it was kept"
    if _is_unreachable(error) or isinstance(error, errors.LocalEntryNotFoundError):
        why = _line(error.__cause__ or error)
        return f"{constants.ENDPOINT} cannot be reached ({why}), and it is not in the cache"
    return _line(error)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removesuffix(".")

"""A server that speaks what `huggingface_hub` asks of the hub, for folders of this machine."""

import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LARGE = 100_000  # bytes from which the hub keeps a file as large, under its SHA-256
COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name and branch: the files of a folder.

    Attributes:
      repositories: {'org/name': {'main': folder}}.
      gated: Repositories whose files need a token that nobody here has.
      cut: Files of which the second half never comes.
      changed: Files whose bytes are others than their hash says.
      down: Whether every answer is that the hub is not available.
      asked: 'METHOD path' of every request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, pathlib.Path]] = {}
        self.gated: set[str] = set()
        self.cut: set[str] = set()
        self.changed: set[str] = set()
        self.down = False
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, folder: pathlib.Path, branch: str = "main") -> str:
        """Serves a folder; returns its address."""
        self.repositories.setdefault(name, {})[branch] = folder
        return f"hf://{name}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if self.server.down:
            self._send(503, {}, b"", with_body)
        elif path.startswith("/api/models/"):
            self._tell(path.removeprefix("/api/models/"), with_body)
        else:
            self._give(path, with_body)

    def _tell(self, path: str, with_body: bool) -> None:
        """What a repository holds: GET /api/models/org/name/revision/main."""
        name, _, revision = path.partition("/revision/")
        folder, commit = self._found(name, revision or "main", with_body)
        if folder is None:
            return
        files = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
        siblings = [{"rfilename": file} for file in files]
        told = {"id": name, "sha": commit, "siblings": siblings, "gated": name in self.server.gated}
        headers = {"Content-Type": "application/json"}
        self._send(200, headers, json.dumps(told).encode(), with_body)

    def _give(self, path: str, with_body: bool) -> None:
        """A file: /org/name/resolve/revision/file."""
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        folder, commit = self._found(name, revision, with_body)
        if folder is None:
            return
        if name in self.server.gated:
            self._refuse(403, "GatedRepo", with_body)
        elif not (folder / file).is_file():
            self._refuse(404, "EntryNotFound", with_body, {"X-Repo-Commit": commit})
        else:
            content = (folder / file).read_bytes()
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_hash(content)}"'}
            if len(content) > LARGE:
                headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"]}
            content = content[: len(content) // 2] if self._is_cut(file, with_body) else content
            content = b"?" + content[1:] if file in self.server.changed else content
            self._send(200, headers, content, with_body)

    def _is_cut(self, file: str, with_body: bool) -> bool:
        return file in self.server.cut and with_body

    def _found(self, name: str, revision: str, with_body: bool):
        """The folder and its commit; (None, '') after an answer that says what is missing."""
        branches = self.server.repositories.get(name)
        if branches is None:
            self._refuse(401, "RepoNotFound", with_body)
            return None, ""
        for branch, folder in branches.items():
            if revision in (branch, COMMITS[branch]):
                return folder, COMMITS[branch]
        self._refuse(404, "RevisionNotFound", with_body)
        return None, ""

    def _refuse(self, status: int, code: str, with_body: bool, headers=()) -> None:
        self._send(status, {"X-Error-Code": code, **dict(headers)}, b"", with_body)

    def _send(self, status: int, headers: dict[str, str], body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def _hash(content: bytes) -> str:
    """By what the hub names a file."""
    if len(content) > LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub without repositories."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def use(url: str, cache: pathlib.Path, monkeypatch: Any) -> None:
    """Has this process take that hub, as HF_ENDPOINT would before `huggingface_hub` is imported."""
    from huggingface_hub import constants

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

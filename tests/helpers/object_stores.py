"""Object stores for tests: S3 and Google Cloud Storage as servers of this process, and fsspec's."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator

import fsspec
import pytest
from processes import free_port

from vit_jax import stores

# gcsfs would ask Google itself what kind of bucket it has; it reads this when it is imported.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


@contextlib.contextmanager
def memory() -> Iterator[tuple[str, dict[str, str]]]:
    """fsspec's own store, which this process alone sees."""
    yield f"memory://{uuid.uuid4().hex}", {}


@contextlib.contextmanager
def s3() -> Iterator[tuple[str, dict[str, str]]]:
    """moto's S3."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(port=(port := free_port()), verbose=False)
    server.start()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with _environment("s3", variables):
            # moto keeps its buckets for as long as the process lives.
            fsspec.filesystem("s3", use_listings_cache=False).makedirs("bucket", exist_ok=True)
            yield "s3://bucket", variables
    finally:
        server.stop()


@contextlib.contextmanager
def gcs() -> Iterator[tuple[str, dict[str, str]]]:
    """An emulator of Google Cloud Storage."""
    from gcp_storage_emulator.server import create_server

    server = create_server(
        "127.0.0.1", port := free_port(), in_memory=True, default_bucket="bucket"
    )
    server.start()
    variables = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    try:
        with _environment("gs", variables):
            yield "gs://bucket", variables
    finally:
        server.stop()


@contextlib.contextmanager
def _environment(scheme: str, variables: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        # Clients keep the address of the server that they were made for.
        fsspec.get_filesystem_class(scheme).clear_instance_cache()
        yield
    fsspec.get_filesystem_class(scheme).clear_instance_cache()


def download(address: str, folder: pathlib.Path) -> pathlib.Path:
    """All files below an address."""
    root = stores.path(address)
    names = list(stores.files_below(root))
    stores.download([root / name for name in names], [folder / name for name in names])
    return folder


def upload(folder: pathlib.Path, address: str) -> str:
    """All files below a folder."""
    root, files = stores.path(address), [f for f in folder.rglob("*") if f.is_file()]
    stores.upload(files, [root / f.relative_to(folder).as_posix() for f in files])
    return address

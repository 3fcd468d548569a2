"""Paths and addresses: what is one, what is read there, and what is said where nothing can be."""

import contextlib
import importlib
import os
import pathlib
import sys

import object_stores
import pytest

from vit_jax import stores
from vit_jax.checkpoint.files.archive import replacing, replacing_directory
from vit_jax.errors import UserError


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("gs://b/x", "gs://b/x"),
        ("S3://b/x", "s3://b/x"),
        (pathlib.PurePosixPath("gs://b/x"), "gs://b/x"),
        ("a/b", None),
        ("/a:b", None),
        ("C:/a", None),
        ("", None),
    ],
    ids=str,
)
def test_an_address_is_told_from_a_path(location, address):
    assert stores.address(location) == address
    assert stores.is_address(location) == (address is not None)


@pytest.fixture
def root():
    with object_stores.memory() as (address, _):
        yield address


def test_files_and_folders_are_asked_for_as_on_a_disk(root, tmp_path):
    for place in (root, str(tmp_path)):
        (pathlib.Path(place) if place != root else stores.path(root)).joinpath("a").mkdir(
            parents=True, exist_ok=True
        )
        (stores.path(place) / "a" / "x.txt").write_bytes(b"x")
        folder, file = stores.join(place, "a"), stores.join(place, "a", "x.txt")
        asked = (stores.is_file, stores.is_dir, stores.exists)
        assert [ask(file) for ask in asked] == [True, False, True]
        assert [ask(folder) for ask in asked] == [False, True, True]
        assert [ask(file + "y") for ask in asked] == [False, False, False]
        (entry,) = stores.scan(folder)
        assert (entry.name, entry.path, entry.is_dir(), entry.is_file()) == (
            *("x.txt", file),
            *(False, True),
        )
        assert stores.read_bytes(file) == b"x"
        assert stores.absolute(f"{folder}/") == folder
        with pytest.raises(FileNotFoundError, match="No such file or directory"):
            stores.read_bytes(file + "y")


@pytest.mark.parametrize(
    ("scheme", "package", "remedy"),
    [("gs", "gcsfs", 'pip install "vit-jax[gcs]"'), ("s3", "s3fs", 'pip install "vit-jax[s3]"')],
)
def test_a_missing_package_is_named_with_its_extra(scheme, package, remedy, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.setattr(importlib.import_module("fsspec.registry"), "registry", {})
    with pytest.raises(UserError) as error:
        stores.path(f"{scheme}://bucket/run")
    assert str(error.value) == (
        f"{scheme}://bucket/run: the package that reads {scheme}:// is not installed: {remedy}"
    )


def test_what_clients_raise_becomes_one_line():
    class Odd(OSError):
        pass

    for raised, message in (
        (RuntimeError("no token.\nTraceback …"), "no token"),
        (Odd("refused"), "refused"),
        (KeyError(), "KeyError"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ):
        with pytest.raises(OSError) as error, stores.as_os_errors():  # noqa: PT011
            raise raised
        assert error.value.strerror == message


def test_what_is_written_there_appears_whole_or_not_at_all(root, monkeypatch):
    with replacing(f"{root}/out/x.bin") as file:
        file.write(b"one")
    with contextlib.suppress(KeyboardInterrupt), replacing(f"{root}/out/x.bin") as file:
        file.write(b"tw")
        raise KeyboardInterrupt
    assert stores.read_bytes(f"{root}/out/x.bin") == b"one"

    order = []
    uploaded = stores.upload

    def upload(files, targets):
        order.extend(target.name for target in targets)
        uploaded(files, targets)

    monkeypatch.setattr(stores, "upload", upload)
    for names in (("config.json", "old.txt"), ("config.json", "weights", "below/x")):
        with replacing_directory(f"{root}/out/model") as folder:
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(name)
    assert set(stores.files_below(stores.path(f"{root}/out/model"))) == set(names)
    assert order[-1] == "config.json"  # by which the directory is known
    assert not os.path.exists(folder)

"""What writers share: C order piece by piece, and the next tensor while one is written."""

import errno
import os
import threading
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vit_jax.checkpoint.files import archive, writing
from vit_jax.checkpoint.files.formats import write_npz, write_safetensors
from vit_jax.errors import UserError

DTYPES = [np.uint8, np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64, "?"]


def numbers(shape, dtype=np.float32):
    """Arbitrary bits, so that a NaN's must come through, too."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    top = 2 if np.dtype(dtype) == bool else 256
    return np.random.default_rng(0).integers(0, top, size, np.uint8).view(dtype).reshape(shape)


TURNED = {
    "in order": numbers((5, 7)),
    "read-only": np.frombuffer(numbers((70, 40)).tobytes(), np.float32).reshape(70, 40).T,
    "not aligned": np.frombuffer(b"x" + bytes(range(96)), np.uint8)[1:].view(float).reshape(3, 4).T,
    "of the other byte order": numbers((7, 5)).view(">f4").T,
    "a matrix": numbers((600, 700)).T,
    "longer than a piece": numbers((300_001, 3)).T,
    "wider than a piece": numbers((3, 300_001)).T,
    "one row": numbers((9, 1)).T,
    "heads first": numbers((33, 4, 8)).transpose(1, 2, 0),
    "heads last": numbers((4, 8, 33)).transpose(2, 0, 1),
    "a convolution": numbers((4, 4, 3, 32)).transpose(3, 2, 0, 1),
    "every second": numbers((8, 10))[::2, ::2],
    "backwards": numbers((8, 10)).T[::-1],
    "repeated": np.broadcast_to(numbers((4, 1)), (4, 6)),
    "empty": numbers((0, 4)).T,
    "a scalar": numbers(()),
}


@pytest.mark.parametrize("x", TURNED.values(), ids=TURNED)
def test_bytes_come_in_c_order(x):
    want = x.tobytes("C")
    assert b"".join(bytes(part) for part in writing.pieces(x)) == want
    copy = writing.contiguous(x)
    assert copy.flags.c_contiguous
    assert (copy.shape, copy.dtype, copy.tobytes()) == (x.shape, x.dtype, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_of_every_size_are_turned(dtype):
    x = numbers((70, 40), dtype).T
    assert b"".join(bytes(part) for part in writing.pieces(x)) == x.tobytes("C")
    assert writing.contiguous(x).tobytes() == x.tobytes("C")


def test_a_turned_matrix_is_never_copied_whole():
    x = numbers((1024, 4096)).T
    sizes = [len(part) for part in writing.pieces(x)]
    assert sum(sizes) == x.nbytes
    assert max(sizes) * 8 <= x.nbytes


def test_one_is_made_while_another_is_used():
    made: list[str] = []
    turn = threading.Condition()

    def make(name):
        with turn:
            made.append(name)
            turn.notify_all()
        return name.upper()

    with writing.ahead(make, ["a", "b", "c", "d"]) as coming:
        assert next(coming) == "A"
        with turn:
            assert turn.wait_for(lambda: made == ["a", "b"], timeout=60)
        assert [*coming] == ["B", "C", "D"]
    assert made == ["a", "b", "c", "d"]
    with writing.ahead(make, []) as coming:
        assert [*coming] == []


@pytest.mark.parametrize("write", [write_npz, write_safetensors])
def test_what_cannot_be_read_leaves_nothing(tmp_path, write):
    class Broken(dict):
        def __getitem__(self, name):
            if name == "b":
                raise UserError("'b' is damaged")
            return super().__getitem__(name)

    tensors = Broken(a=np.zeros(3), b=np.zeros(3), c=np.zeros(3))
    specs = {name: archive.Spec((3,), np.dtype(float)) for name in "abc"}
    if write is write_npz:
        tensors.specs = specs
    lazily = {"specs": specs} if write is write_safetensors else {}
    with pytest.raises(UserError, match="'b' is damaged"):
        write(tmp_path / "x", tensors, **lazily)
    assert not os.listdir(tmp_path)


def test_a_full_disk_says_so_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match="No space left"), archive.replacing(tmp_path / "x", 9):
        raise AssertionError("the block is not entered")
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("has_it", [True, False])
def test_room_cannot_be_set_aside_everywhere(tmp_path, monkeypatch, has_it):
    def unable(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if has_it:
        monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with archive.replacing(tmp_path / "x", 3) as f:
        f.write(b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_the_final_metadata_of_an_npz_come_last(tmp_path):
    seen = []

    class Lazy(dict):
        def __getitem__(self, name):
            seen.append(name)
            return super().__getitem__(name)

    def late():
        seen.append("late")
        return {"k": "11"}

    write_npz(tmp_path / "x", Lazy(a=np.zeros(2), b=np.ones(2)), {"k": "00"}, late=late)
    assert seen == ["a", "b", "late"]
    with zipfile.ZipFile(tmp_path / "x") as z:
        assert z.comment == b'{"k": "11"}'
        assert z.testzip() is None

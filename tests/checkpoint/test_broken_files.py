"""Whatever lies on the disk: one UserError, no code run, nothing half-written."""

import io
import json
import os
import pickle
import stat
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from recipes import GOLDEN

from vit_jax import checkpoint
from vit_jax.checkpoint.files.archive import replacing
from vit_jax.checkpoint.files.formats import open_archive, write_npz, write_safetensors, write_torch
from vit_jax.checkpoint.source import open_source
from vit_jax.errors import UserError

GOOD = (GOLDEN / "ckpt_testing_rep_linen.npz").read_bytes()
TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/c": np.array(3, np.int64),
    "empty": np.zeros((0, 4), np.float16),
    "bf": np.arange(5).astype(ml_dtypes.bfloat16),
    "t": np.arange(6.0).reshape(2, 3).T,
}
WRITERS = {"npz": write_npz, "safetensors": write_safetensors, "torch": write_torch}


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", WRITERS)
def test_formats_round_trip(tmp_path, kind):
    WRITERS[kind](tmp_path / "x", TENSORS)
    with open_archive(tmp_path / "x") as archive:
        assert archive.format == kind
        assert set(archive) == set(TENSORS)
        for name, x in TENSORS.items():
            assert tuple(archive.specs[name]) == (x.shape, x.dtype)
            got = archive[name]
            assert (got.shape, got.dtype) == (x.shape, x.dtype)
            assert got.tobytes() == x.tobytes()
    assert os.listdir(tmp_path) == ["x"]


def test_other_programs_read_our_files(tmp_path):
    from safetensors.numpy import load_file

    write_safetensors(tmp_path / "x", TENSORS, {"k": "v"})
    for name, x in load_file(tmp_path / "x").items():
        assert x.tobytes() == TENSORS[name].tobytes()
    write_npz(tmp_path / "y", TENSORS, {"k": "v"})
    with np.load(tmp_path / "y", allow_pickle=False) as z:
        assert set(z) == set(TENSORS)  # the metadata is not among them
        np.testing.assert_array_equal(z["t"], TENSORS["t"])
    for name in "xy":
        with open_archive(tmp_path / name) as archive:
            assert archive.metadata == {"k": "v"}


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "state_dict_ema"])
def test_torch_wrappers(tmp_path, wrapper):
    state = {"module.head.weight": torch.ones(2, 3)}
    content = {wrapper: state, "epoch": 3} if wrapper else state
    torch.save(content, tmp_path / "x.pth")
    with open_source(tmp_path / "x.pth") as source:
        assert list(source.view) == ["head.weight"]


def test_of_several_sets_of_weights_one_must_be_named(tmp_path):
    state = {"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(2)}
    averaged = {name: x + 1 for name, x in state.items()}
    content = {"state_dict": state, "state_dict_ema": averaged, "optimizer": {"state": {0: state}}}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="several sets of weights: 'state_dict', 'state_dict_ema'"):
        open_source(tmp_path / "x.pth")
    for part, first in (("state_dict", 1), ("state_dict_ema", 2)):
        with open_source(tmp_path / "x.pth", part=part) as source:
            assert set(source.view) == set(state)
            assert source.view["head.weight"][0, 0] == first
    with pytest.raises(UserError, match="no 'teacher'"):
        open_source(tmp_path / "x.pth", part="teacher")


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "x.npz"
    for n in [*range(0, 40), *range(40, len(GOOD), 997), len(GOOD) - 1]:
        path.write_bytes(GOOD[:n])
        with pytest.raises(UserError):
            checkpoint.load(path)


def test_flipped_bits_in_an_npz_never_pass_unseen(tmp_path):
    want = {n: x.tobytes() for n, x in np.load(io.BytesIO(GOOD)).items()}
    rng = np.random.default_rng(0)
    path = tmp_path / "x.npz"
    refused = 0
    for _ in range(300):
        data = bytearray(GOOD)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            with open_archive(path) as archive:
                got = {n: archive[n].tobytes() for n in archive}
        except UserError:
            refused += 1
        else:  # a bit that means nothing, such as a time stamp, or a changed name
            assert set(got.values()) == set(want.values())
    assert refused > 200


def test_pickles_are_not_run(tmp_path):
    trap = tmp_path / "sprung"
    with open(tmp_path / "x.npz", "wb") as f:
        pickle.dump({"a": Trap(trap)}, f)
    np.savez(tmp_path / "y.npz", a=np.array([Trap(trap)], dtype=object))
    torch.save({"a": Trap(trap)}, tmp_path / "z.npz")
    trap.unlink(missing_ok=True)
    for name in "xyz":
        with pytest.raises(UserError):
            checkpoint.load(tmp_path / f"{name}.npz")
    assert not trap.exists()


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    return npy_header(f"{{'descr':{descr},'fortran_order':False,'shape':{shape}}}") + data


def npy_header(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items():
            z.writestr(f"{name}.npy", data)
    return out.getvalue()


def tensors_file(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "text": b"this is no checkpoint",
    "empty zip": b"PK\5\6" + bytes(18),
    "not an array": zipped(a=b"hello"),
    "huge shape": zipped(a=npy("'<f4'", "(1000000000000,)")),
    "negative shape": zipped(a=npy("'<f4'", "(-4,)", b"x" * 16)),
    "code in header": zipped(a=npy_header("__import__('os').abort()")),
    "strings": zipped(a=npy("'<U2'", "(1,)", b"x" * 8)),
    "structured": zipped(a=npy("[('x','<f4')]", "(1,)", b"1234")),
    "absurd header": tensors_file({}, length=2**63),
    "header beyond file": tensors_file({}, length=1000),
    "header no object": tensors_file(b"{1:2}"),
    "deep header": tensors_file(b'{"a":' + b"[" * 100_000),
    "hole": tensors_file({"a": entry([1], [4, 8])}, bytes(8)),
    "overlap": tensors_file({"a": entry([2], [0, 8]), "b": entry([1], [4, 8])}, bytes(8)),
    "beyond end": tensors_file({"a": entry([9], [0, 36])}, bytes(8)),
    "trailing": tensors_file({"a": entry([1], [0, 4])}, bytes(8)),
    "negative": tensors_file({"a": entry([-1, -1], [0, 4])}, bytes(4)),
    "float shape": tensors_file({"a": entry([1.0], [0, 4])}, bytes(4)),
    "unknown dtype": tensors_file({"a": entry([1], [0, 4], "F31")}, bytes(4)),
    "no fields": tensors_file({"a": {}}, bytes(4)),
    "entry no object": tensors_file({"a": 3}, bytes(4)),
    "twice": tensors_file(b'{"__metadata__":{},"__metadata__":{}}'),
}  # fmt: skip


def bomb() -> bytes:
    """Two members that claim 4 GB of zeros each, a few hundred bytes in the file."""
    array = npy("'|u1'", "(4000000000,)")
    data = bytearray(zipped(a=array, b=array))
    at = -1
    while (at := data.find(b"PK\1\2", at + 1)) >= 0:  # the central directory's records
        data[at + 24 : at + 28] = struct.pack("<I", 4_000_000_000 + len(array))
    return bytes(data)


HOSTILE["bomb"] = bomb()


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(tmp_path, what):
    path = tmp_path / "x"
    path.write_bytes(HOSTILE[what])
    with pytest.raises(UserError):
        checkpoint.load(path)


def test_bombs_are_recognised_before_unpacking(tmp_path):
    (tmp_path / "x").write_bytes(HOSTILE["bomb"])
    with pytest.raises(UserError, match="claim to unpack to 8000000"):
        checkpoint.load(tmp_path / "x")


def test_paths_that_are_no_files(tmp_path):
    for path in (tmp_path, tmp_path / "missing.npz", tmp_path / "no" / "such"):
        with pytest.raises(UserError, match=str(path)):
            checkpoint.load(path)
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="is empty"):
        checkpoint.load(tmp_path / "empty")


def as_nobody(action):
    """Runs `action` in a child without root's right to ignore permissions; its error message."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            action()
            message = "no error"
        except UserError as e:
            message = f"UserError: {e}"
        except BaseException as e:  # the parent asserts on the message
            message = repr(e)
        os.write(write, message.encode())
        os._exit(0)
    os.close(write)
    with open(read) as f:
        message = f.read()
    os.waitpid(pid, 0)
    return message


def test_no_permission(tmp_path_factory):
    folder = tmp_path_factory.mktemp("permissions")
    for parent in (folder, *folder.parents):
        if parent.owner() == folder.owner() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    path = folder / "x.npz"
    path.write_bytes(GOOD)
    path.chmod(0)
    message = as_nobody(lambda: checkpoint.load(path))
    assert message.startswith("UserError: cannot read"), message
    assert "Permission denied" in message
    path.chmod(stat.S_IRUSR)
    folder.chmod(0o555)
    message = as_nobody(lambda: checkpoint.save(folder / "y.npz", {"a": np.ones(3)}))
    folder.chmod(0o755)
    assert message.startswith("UserError: cannot write"), message
    assert os.listdir(folder) == ["x.npz"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_failed_write_leaves_the_old_file(tmp_path, kind, monkeypatch):
    path = tmp_path / "x"
    WRITERS[kind](path, TENSORS)
    old = path.read_bytes()
    bad = dict(TENSORS, z=np.array([object()]))
    with pytest.raises((UserError, TypeError, ValueError)):
        WRITERS[kind](path, bad)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["x"]


def test_full_disk(tmp_path):
    def fill():
        with replacing(tmp_path / "x") as f:
            f.write(b"some")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        fill()
    assert os.listdir(tmp_path) == []


def test_unwritable_targets(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "x.npz"):
        with pytest.raises(UserError, match="cannot write"):
            checkpoint.save(path, {"a": np.ones(3)})
    with pytest.raises(UserError, match="dtype"):
        checkpoint.save(tmp_path / "x.npz", {"a": np.array(["text"])})
    assert os.listdir(tmp_path) == []

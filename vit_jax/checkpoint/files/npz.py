"""NumPy's `.npz`, tensor by tensor. Nothing is ever unpickled.

bfloat16 is stored as two raw bytes (`|V2`), the way the published files have it. Metadata is
JSON in the zip comment: a member of its own would appear among the parameters in the original
code, which takes every member for one.
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from vit_jax.checkpoint.files.archive import (
    BFLOAT16,
    Archive,
    Spec,
    as_bytes,
    reading,
    replacing,
    to_numpy,
)
from vit_jax.checkpoint.files.writing import ahead, pieces
from vit_jax.errors import UserError

_RAW16 = np.dtype("V2")
MAX_METADATA = 65_535  # bytes, as JSON
_LOCAL_HEADER = 30
_CHUNK = 1 << 20
# A file that unpacks to more than both is a bomb, not a checkpoint.
_MAX_RATIO, _MAX_UNPACKED = 100, 4 << 30


class _Header(NamedTuple):
    """What stands before an array's data: its spec, its order, and how many bytes that takes."""

    spec: Spec
    fortran: bool
    nbytes: int


class Npz(Archive):
    """The arrays of an `.npz` file by name; each is read when it is asked for.

    Raises:
      UserError: if the file cannot be read, is damaged or holds anything but numbers.
    """

    format = "npz"

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        with reading(self.path, self.format):
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by `close`)
            try:
                self._zip = zipfile.ZipFile(self._file)
                self._open()
            except BaseException:
                self._file.close()
                raise

    def _open(self) -> None:
        members = self._zip.infolist()
        unpacked, packed = sum(m.file_size for m in members), os.path.getsize(self.path)
        if unpacked > max(_MAX_UNPACKED, _MAX_RATIO * packed):
            raise UserError(
                f"{str(self.path)!r} is refused: its {packed} bytes claim to unpack to {unpacked}"
            )
        self._headers: dict[str, _Header] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                raise UserError(f"{str(self.path)!r}: member {name!r} is no array")
            if name in self.specs:
                raise UserError(f"{str(self.path)!r}: {name!r} is stored twice")
            with self._zip.open(member) as f:
                header = self._headers[name] = _header(f, name)
            self.specs[name] = header.spec
            if header.spec.nbytes != member.file_size - header.nbytes:
                raise UserError(
                    f"{str(self.path)!r}: {name!r} should hold {header.spec.nbytes} bytes, "
                    f"holds {member.file_size - header.nbytes}"
                )
        self.metadata = _metadata(self._zip.comment)

    def read(self, name: str) -> np.ndarray:
        spec, fortran, skip = self._headers[name]
        x = np.empty(spec.shape[::-1] if fortran else spec.shape, spec.dtype)
        buffer = as_bytes(x)
        if self._is_stored(name):
            start = self._start(name)
            self._file.seek(start)
            checksum = zlib.crc32(self._file.read(skip))
            for i in range(0, len(buffer), _CHUNK):
                self._fill(name, buffer[i : i + _CHUNK])
                checksum = zlib.crc32(buffer[i : i + _CHUNK], checksum)
            if checksum != self._zip.getinfo(f"{name}.npy").CRC:
                raise UserError(f"{str(self.path)!r}: {name!r} is damaged (its checksum differs)")
        else:
            self._unpack(name, buffer)
        return x.T if fortran else x

    def read_slice(self, name: str, index: int) -> np.ndarray:
        spec, fortran, skip = self._headers[name]
        if fortran or not self._is_stored(name):
            return self.read(name)[index]
        x = np.empty(spec.shape[1:], spec.dtype)
        self._file.seek(self._start(name) + skip + index * x.nbytes)
        self._fill(name, as_bytes(x))
        return x

    def close(self) -> None:
        self._file.close()

    def _is_stored(self, name: str) -> bool:
        return self._zip.getinfo(f"{name}.npy").compress_type == zipfile.ZIP_STORED

    def _start(self, name: str) -> int:
        """Where a member begins in the file."""
        at = self._zip.getinfo(f"{name}.npy").header_offset
        self._file.seek(at)
        # The local header's own name and extra field may differ from the directory's.
        return at + _LOCAL_HEADER + sum(struct.unpack("<26xHH", self._file.read(_LOCAL_HEADER)))

    def _fill(self, name: str, buffer: memoryview) -> None:
        if self._file.readinto(buffer) != len(buffer):
            raise UserError(f"{str(self.path)!r}: {name!r} ends early")

    def _unpack(self, name: str, buffer: memoryview) -> None:
        with self._zip.open(f"{name}.npy") as f:
            f.read(self._headers[name].nbytes)
            at = 0
            while at < len(buffer):
                if not (part := f.read(min(_CHUNK, len(buffer) - at))):
                    raise UserError(f"{str(self.path)!r}: {name!r} ends early")
                buffer[at : at + len(part)] = part
                at += len(part)
            f.read(1)  # at the end, the zip reader compares the checksum


def _header(f, name: str) -> _Header:
    version = np.lib.format.read_magic(f)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise UserError(f"{name!r} has the unknown array format {version}")
    shape, fortran, dtype = read[version](f)
    if dtype == _RAW16:
        dtype = BFLOAT16
    if dtype.hasobject or dtype.kind == "O":
        raise UserError(f"{name!r} holds Python objects; such files can run code and are not read")
    if dtype != BFLOAT16 and dtype.kind not in "fiub":
        raise UserError(f"{name!r} has dtype {dtype}; expected numbers")
    return _Header(Spec(shape, dtype), fortran, f.tell())


def _metadata(comment: bytes) -> dict[str, str]:
    try:
        metadata = json.loads(comment or b"{}")
    except ValueError:
        return {}  # another program's comment
    return {k: str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}


def write_npz(
    path: str | os.PathLike,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    late: Callable[[], Mapping[str, str]] | None = None,
) -> None:
    """Writes tensors one at a time, uncompressed. `path` appears whole or not at all.

    Equal input gives equal bytes.

    Args:
      path: Where to.
      tensors: By name; may be lazy.
      metadata: Text for the zip's comment.
      late: The final metadata, no longer than `metadata`; called when the tensors are written.

    Raises:
      UserError: when the file cannot be written.
    """
    comment = _comment(metadata or {})
    names, specs = [*tensors], getattr(tensors, "specs", None) or {}
    size = sum(spec.nbytes for spec in specs.values())
    with replacing(path, size) as f, zipfile.ZipFile(f, "w", allowZip64=True) as z:
        with ahead(lambda name: to_numpy(tensors[name]), names) as coming:
            for name in names:
                x = next(coming)
                _require_numbers(name, x)
                with z.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    _write_array(member, x)
                del x  # or it would be in memory beside the next two
        z.comment = comment if late is None else _comment(late())


def _comment(metadata: Mapping[str, str]) -> bytes:
    comment = json.dumps(dict(metadata)).encode() if metadata else b""
    if len(comment) > MAX_METADATA:
        raise UserError(f"{len(comment)} bytes of metadata; an npz file holds {MAX_METADATA}")
    return comment


def _write_array(member: IO[bytes], x: np.ndarray) -> None:
    """As `np.save`, which would copy the numbers twice where they go into a zip."""
    dtype = _RAW16 if x.dtype == BFLOAT16 else x.dtype
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(member, {**fields, "shape": x.shape})
    member.writelines(pieces(x))


def _require_numbers(name: str, x: np.ndarray) -> None:
    if x.dtype != BFLOAT16 and x.dtype.kind not in "fiub":
        raise UserError(f"{name!r} has dtype {x.dtype}; an npz checkpoint holds plain numbers")

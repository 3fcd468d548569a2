"""safetensors, tensor by tensor: the library's own writer wants all tensors in memory at once.

Layout: 8 bytes header length (little endian), JSON header, then the tensors' bytes. See
https://github.com/huggingface/safetensors#format.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.checkpoint.files.archive import (
    Archive,
    Spec,
    as_bytes,
    reading,
    replacing,
    to_numpy,
)
from vit_jax.checkpoint.files.writing import ahead, pieces
from vit_jax.errors import UserError

_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # the library's limit
_ALIGN = 8


class Safetensors(Archive):
    """The tensors of a safetensors file; each is read when it is asked for.

    Raises:
      UserError: if the file cannot be read, is damaged or holds anything but numbers.
    """

    format = "safetensors"

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        with reading(self.path, self.format):
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by `close`)
            try:
                self._open()
            except BaseException:
                self._file.close()
                raise

    def _open(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        (length,) = struct.unpack("<Q", self._file.read(8))
        if length > min(_MAX_HEADER, size - 8):
            raise UserError(
                f"{str(self.path)!r} is no readable safetensors file: its header claims {length} "
                f"bytes, the file has {size}"
            )
        header = _object(json.loads(self._file.read(length), object_pairs_hook=_unique))
        metadata = _object(header.pop("__metadata__", None) or {})
        for name, entry in header.items():
            _require_entry(name, entry)
        self.metadata = {str(k): str(v) for k, v in metadata.items()}
        self._data = 8 + length
        self._offsets: dict[str, int] = {}
        end = 0
        for name, entry in sorted(header.items(), key=lambda kv: kv[1]["data_offsets"]):
            if entry["dtype"] not in _DTYPES:
                raise UserError(f"{name!r} has the unknown dtype {entry['dtype']!r}")
            shape = tuple(entry["shape"])
            if not all(type(n) is int and n >= 0 for n in shape):
                raise UserError(f"{name!r} has the impossible shape {shape}")
            spec = Spec(shape, _DTYPES[entry["dtype"]])
            if tuple(entry["data_offsets"]) != (end, end + spec.nbytes):
                raise UserError(
                    f"{name!r} {spec.shape} should lie at {(end, end + spec.nbytes)}, is said to "
                    f"lie at {entry['data_offsets']}"
                )
            self.specs[name], self._offsets[name] = spec, end
            end += spec.nbytes
        if end != size - self._data:
            raise UserError(
                f"{str(self.path)!r} is damaged: {end} bytes of tensors expected, "
                f"{size - self._data} found"
            )

    def read(self, name: str) -> np.ndarray:
        return self._at(name, self.specs[name], 0)

    def read_slice(self, name: str, index: int) -> np.ndarray:
        spec = Spec(self.specs[name].shape[1:], self.specs[name].dtype)
        return self._at(name, spec, index * spec.nbytes)

    def _at(self, name: str, spec: Spec, skip: int) -> np.ndarray:
        x = np.empty(spec.shape, spec.dtype)
        self._file.seek(self._data + self._offsets[name] + skip)
        if self._file.readinto(as_bytes(x)) != spec.nbytes:
            raise UserError(f"{str(self.path)!r}: {name!r} ends early")
        return x

    def close(self) -> None:
        self._file.close()


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"its header holds {str(value)[:80]} where a JSON object is expected")
    return value


def _require_entry(name: str, entry: Any) -> None:
    """UserError for an entry of the header without a dtype, a list of sizes and one of offsets."""
    fields = _object(entry)
    offsets = fields["data_offsets"]
    good = isinstance(fields["dtype"], str) and isinstance(fields["shape"], list)
    if not (good and isinstance(offsets, list) and all(type(n) is int for n in offsets)):
        raise UserError(f"its header describes {name!r} as {str(entry)[:80]}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise UserError("its header gives a name twice")
    return fields


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    specs: Mapping[str, Spec] | None = None,
    late: Callable[[], Mapping[str, str]] | None = None,
) -> None:
    """Writes tensors one at a time. `path` appears whole or not at all.

    Args:
      path: Where to.
      tensors: By name; may be lazy.
      metadata: Text for the header.
      specs: Shapes and dtypes of lazy tensors, so that none is computed twice.
      late: The final metadata, as long as `metadata`; called when the tensors are written.
    """
    if specs is None:
        tensors = {name: to_numpy(x) for name, x in tensors.items()}
        specs = {name: Spec(x.shape, x.dtype) for name, x in tensors.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    # Larger items first, so that every tensor is aligned, as the library does.
    names = sorted(specs, key=lambda n: (-specs[n].dtype.itemsize, n))
    for name in names:
        spec = specs[name]
        if spec.dtype not in _NAMES:
            raise UserError(f"{name!r} has dtype {spec.dtype}, which safetensors does not know")
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    encoded = _encoded(header)
    start = struct.pack("<Q", len(encoded)) + encoded
    with replacing(path, len(start) + end) as f:
        f.write(start)
        with ahead(lambda name: to_numpy(tensors[name]), names) as coming:
            for name in names:
                x, spec = next(coming), specs[name]
                if (x.shape, x.dtype) != tuple(spec):
                    raise ValueError(f"{name!r} was announced as {spec}, is {x.shape} {x.dtype}")
                f.writelines(pieces(x))
                del x  # or it would be in memory beside the next two
        if late is not None:
            final = _encoded({**header, "__metadata__": dict(late())})
            if len(final) != len(encoded):
                raise ValueError("the final metadata is not as long as the first")
            f.seek(8)
            f.write(final)


def _encoded(header: Mapping[str, Any]) -> bytes:
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return encoded + b" " * (-len(encoded) % _ALIGN)

"""The files of one shard: Parquet, or arrays of NumPy with an index in CSV."""

import abc
import contextlib
import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple, Self

import numpy as np

from vit_jax import stores
from vit_jax.checkpoint.files.archive import replacing
from vit_jax.errors import UserError, chosen
from vit_jax.evaluate.embeddings.folder import Folder, Manifest

INDEX, KEY, LABEL = "index", "key", "label"
_GROUP = 2**23  # bytes of vectors that Parquet holds before they are written

Label = int | list[int] | None


class Rows(NamedTuple):
    """Some examples with their vectors.

    Attributes:
      index: Their numbers in the data, int64 [N].
      keys: What they are called: paths of files, or what their dataset calls them.
      labels: The number of the class of each, a list of them, or None.
      vectors: By name, each [N, …].
    """

    index: np.ndarray
    keys: list[str]
    labels: Sequence[Label]
    vectors: dict[str, np.ndarray]


class Writer(abc.ABC):
    """Writes a shard row by row; its files get their names when the block succeeds.

    Args:
      folder: Where to.
      manifest: What is embedded.
      shard: The number of the shard.
    """

    def __init__(self, folder: Folder, manifest: Manifest, shard: int):
        self._folder, self._manifest, self._shard = folder, manifest, shard
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._files = stack
            self._open()
            self._files = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._close()
        self._files.__exit__(*error)

    def _new(self, ending: str) -> IO[bytes]:
        return self._files.enter_context(replacing(self._folder.file(self._shard, ending)))

    @abc.abstractmethod
    def _open(self) -> None: ...
    @abc.abstractmethod
    def write(self, rows: Rows) -> None:
        """Adds rows."""

    @abc.abstractmethod
    def _close(self) -> None: ...


# --- Parquet -------------------------------------------------------------------------------------


class ParquetWriter(Writer):
    """`shard-000012.parquet`: columns index, key, label where there are labels, and the vectors.

    A vector is a list of fixed size, and tokens are a list of fixed size of such.
    """

    def _open(self) -> None:
        pa, pq = _pyarrow()
        self._waiting: list[Any] = []
        self._bytes = 0
        vectors = {name: _list_type(pa, self._manifest, name) for name in self._manifest.vectors}
        labels = {"one": pa.int64(), "several": pa.list_(pa.int64())}
        told = labels.get(self._manifest.data["labels"])
        columns = {INDEX: pa.int64(), KEY: pa.string(), LABEL: told, **vectors}
        self._schema = pa.schema({name: kind for name, kind in columns.items() if kind is not None})
        self._writer = pq.ParquetWriter(
            self._new(".parquet"),
            self._schema,
            # Vectors do not shrink by compression, nor by a dictionary of their values.
            compression={
                name: "none" if name in vectors else "zstd"
                for name in columns
                if told or name != LABEL
            },
            use_dictionary=False,
        )

    def write(self, rows: Rows) -> None:
        """See `Writer.write`."""
        pa, _ = _pyarrow()
        columns: dict[str, Any] = {INDEX: rows.index, KEY: rows.keys, LABEL: rows.labels}
        arrays = []
        for field in self._schema:
            if field.name in rows.vectors:
                arrays.append(_lists(pa, rows.vectors[field.name], field.type))
            else:
                arrays.append(pa.array(columns[field.name], field.type))
        self._waiting.append(pa.record_batch(arrays, self._schema))
        self._bytes += sum(x.nbytes for x in rows.vectors.values())
        if self._bytes >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        pa, _ = _pyarrow()
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting).combine_chunks())
        self._waiting, self._bytes = [], 0

    def _close(self) -> None:
        self._flush()
        self._writer.close()


def _read_parquet(folder: Folder, manifest: Manifest, shard: int, name: str) -> Rows:
    pa, pq = _pyarrow()
    path = folder.file(shard, ".parquet")
    labelled = manifest.data["labels"] != "none"
    wanted = [INDEX, KEY, *([LABEL] if labelled else []), name]
    try:
        table = pq.read_table(stores.readable(path), columns=wanted, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    flat = table[name].combine_chunks()
    while pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    vectors = flat.to_numpy(zero_copy_only=False).reshape(-1, *manifest.vectors[name])
    labels: list[Label] = table[LABEL].to_pylist() if labelled else [None] * len(table)
    return Rows(table[INDEX].to_numpy(), table[KEY].to_pylist(), labels, {name: vectors})


def _list_type(pa: Any, manifest: Manifest, name: str) -> Any:
    kind = pa.from_numpy_dtype(np.dtype(manifest.dtype))
    for size in reversed(manifest.vectors[name]):
        kind = pa.list_(kind, size)
    return kind


def _lists(pa: Any, vectors: np.ndarray, kind: Any) -> Any:
    kinds = []
    while pa.types.is_fixed_size_list(kind):
        kinds.append(kind)
        kind = kind.value_type
    array = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    for one in reversed(kinds):
        array = pa.FixedSizeListArray.from_arrays(array, type=one)
    return array


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            'Parquet needs pyarrow, which is not installed: pip install "vit-jax[parquet]", or '
            "--format npy"
        ) from error
    return pa, pq


# --- NumPy ---------------------------------------------------------------------------------------


class NpyWriter(Writer):
    """`shard-000012.features.npy` for each kind of vectors, and `shard-000012.csv` with their rows.

    The CSV has the columns row, index, key and label; several labels have spaces between them.
    """

    def _open(self) -> None:
        self._rows = 0
        self._arrays = {name: self._new(f".{name}.npy") for name in self._manifest.vectors}
        self._write_headers()
        self._index = io.TextIOWrapper(self._new(".csv"), "utf-8", newline="", write_through=True)
        self._files.callback(self._index.detach)
        csv.writer(self._index).writerow(["row", INDEX, KEY, LABEL])

    def write(self, rows: Rows) -> None:
        """See `Writer.write`."""
        for name, file in self._arrays.items():
            file.write(np.ascontiguousarray(rows.vectors[name]).data)
        labels = [_text(label) for label in rows.labels]
        numbers = range(self._rows, self._rows + len(rows.keys))
        csv.writer(self._index).writerows(zip(numbers, rows.index, rows.keys, labels, strict=True))
        self._rows += len(rows.keys)

    def _close(self) -> None:
        self._write_headers()  # which now know the number of rows, and are as long as before

    def _write_headers(self) -> None:
        for name, file in self._arrays.items():
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(self._manifest.dtype)),
                "fortran_order": False,
                "shape": (self._rows, *self._manifest.vectors[name]),
            }
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, header)


def _text(label: Label) -> str:
    if label is None:
        return ""
    return " ".join(map(str, label)) if isinstance(label, list) else str(label)


def _read_npy(folder: Folder, manifest: Manifest, shard: int, name: str) -> Rows:
    paths = folder.file(shard, f".{name}.npy"), folder.file(shard, ".csv")
    try:
        vectors = np.load(stores.readable(paths[0]), allow_pickle=False)
        text = stores.read_bytes(paths[1]).decode()
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {paths[0]} and {paths[1]}: {error}") from error
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    labels = [_label(line[LABEL], manifest.data["labels"]) for line in lines]
    index = np.array([int(line[INDEX]) for line in lines], np.int64)
    return Rows(index, [line[KEY] for line in lines], labels, {name: vectors})


def _label(text: str, kind: str) -> Label:
    if kind == "none":
        return None
    return [int(part) for part in text.split()] if kind == "several" else int(text)


# --- both ----------------------------------------------------------------------------------------

FORMATS: Mapping[str, Any] = {
    "parquet": (ParquetWriter, _read_parquet),
    "npy": (NpyWriter, _read_npy),
}


def writer(folder: Folder, manifest: Manifest, shard: int) -> Writer:
    """What writes a shard in the manifest's format."""
    return FORMATS[manifest.format][0](folder, manifest, shard)


def read(folder: Folder, manifest: Manifest, shard: int, name: str) -> Rows:
    """The rows of a finished shard with one kind of vectors.

    Raises:
      UserError: for a kind that was not computed, a file that is missing or damaged, and one with
        another number of rows than the journal says.
    """
    chosen(name, manifest.vectors, "kind of vectors")
    rows = FORMATS[manifest.format][1](folder, manifest, shard, name)
    expected = folder.entry(shard).rows
    if not len(rows.index) == len(rows.vectors[name]) == expected:
        raise UserError(
            f"shard {shard} of {folder.place} has {len(rows.index)} rows, and the journal says "
            f"{expected}: it was changed after it was written"
        )
    return rows


def check_format(name: str) -> None:
    """Raises UserError for an unknown format, and for Parquet where pyarrow is missing."""
    chosen(name, FORMATS, "--format")
    if name == "parquet":
        _pyarrow()


def bytes_of_row(manifest: Manifest) -> int:
    """The bytes of one example's vectors."""
    sizes: Sequence[int] = [math.prod(shape) for shape in manifest.vectors.values()]
    return sum(sizes) * np.dtype(manifest.dtype).itemsize

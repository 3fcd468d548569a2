"""Writes files of samples as other libraries write them: WebDataset, Parquet, Arrow on disk."""

import io
import json
import pathlib
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from image_helpers import encode

NAMES = ("cat", "dog", "owl")


def image(number: int, file_format: str = "png") -> bytes:
    """An image that tells its number."""
    rng = np.random.default_rng(number)
    return encode(rng.integers(0, 256, (20, 24, 3), np.uint8), file_format)


def write_tar(path: pathlib.Path, members: Mapping[str, bytes]) -> None:
    mode = "w:gz" if path.suffix in (".gz", ".tgz") else "w"
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_shard(
    path: pathlib.Path, numbers: Sequence[int], label: str = "cls", folder: str = ""
) -> None:
    """A shard of WebDataset: sample i is of class i % 3, as number or in JSON as name."""
    members = {}
    for i in numbers:
        members[f"{folder}{i:03}.JPG"] = image(i)
        if label == "cls":
            members[f"{folder}{i:03}.cls"] = str(i % 3).encode()
        else:
            members[f"{folder}{i:03}.json"] = json.dumps({"Class-Name": NAMES[i % 3]}).encode()
    write_tar(path, members)


def table(numbers: Sequence[int], kind: str = "ClassLabel") -> Any:
    """A table as Hugging Face's datasets have it.

    `kind` is 'ClassLabel', 'List' for several of them, or 'plain' for names and bytes alone.
    """
    import pyarrow as pa

    names = {"names": list(NAMES), "_type": "ClassLabel"}
    if kind == "plain":
        columns = {"image": [image(i) for i in numbers], "label": [NAMES[i % 3] for i in numbers]}
        return pa.table(columns)
    cells: list[Any] = [i % 3 for i in numbers]
    if kind == "List":
        cells = [[i % 3, (i + 1) % 3][: i % 3] for i in numbers]  # none, one or two
    pictures = [{"bytes": image(i), "path": f"{i}.jpg"} for i in numbers]
    label = {"feature": names, "_type": kind} if kind == "List" else names
    features = {"image": {"_type": "Image"}, "id": {"dtype": "int64"}, "label": label}
    made = pa.table({"image": pictures, "id": list(numbers), "label": cells})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return made.replace_schema_metadata(metadata)


def write_parquet(path: pathlib.Path, numbers: Sequence[int], kind: str = "ClassLabel") -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(numbers, kind), path, row_group_size=4)


def write_on_disk(
    folder: pathlib.Path, splits: Mapping[str, Sequence[int]], kind: str = "ClassLabel"
) -> None:
    """A `DatasetDict` as `save_to_disk` writes it."""
    import pyarrow as pa

    for split, numbers in splits.items():
        place = folder / split
        place.mkdir(parents=True)
        whole = table(numbers, kind)
        with pa.ipc.new_stream(place / "data-00000-of-00001.arrow", whole.schema) as stream:
            stream.write_table(whole, max_chunksize=5)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (place / "state.json").write_text(json.dumps(state))
        (place / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def write_tfds(folder: pathlib.Path, features: Any, examples: Sequence[Mapping[str, Any]]) -> str:
    """The split 'train' of a dataset as TFDS prepares it, one file of ArrayRecord."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from etils import epath

    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder),
        dataset_name=folder.name,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        filetype_suffix="array_record",
        split="train",
    )
    records = [features.serialize_example(features.encode_example(one)) for one in examples]
    info = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[len(records)],
        num_bytes=sum(map(len, records)),
        filename_template=template,
    )
    writer = ArrayRecordWriter(str(info.filepaths[0]), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[info],
        filename_template=template,
        check_data=False,
    )
    return str(folder)

"""Writes samples as ArrayRecord, in the layout of TensorFlow Datasets.

The folder is one that TensorFlow Datasets itself reads (`tfds.builder_from_directory`). It is
written under another name beside its place, shard by shard, and is renamed when it is whole. What
was written stays there if the program is stopped, and the same command goes on behind the last
whole shard.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from vit_jax.errors import UserError
from vit_jax.input_pipeline.examples import OnError
from vit_jax.input_pipeline.preparing import descriptions
from vit_jax.input_pipeline.preparing.planning import (
    PLAN,
    Plan,
    Splits,
    features_of,
    planned,
    stamp,
)
from vit_jax.input_pipeline.preparing.shards import (
    Progress,
    Watch,
    part,
    progress_file,
    write_split,
)

UNFINISHED = ".unfinished"  # behind the name of the folder until it is whole
DESCRIPTION = "prepared.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_FORMAT = "array_record"


def prepare(
    splits: Splits,
    to: str,
    *,
    on_error: OnError = "raise",
    decode: bool = True,
    watch: Watch = lambda samples, count, what: samples,
) -> dict[str, Progress]:
    """Writes a dataset to the folder `to`, unless that was done before from the same files.

    Args:
      splits: The files of each split.
      to: The folder to write; it must not exist yet, or be empty.
      on_error: Treatment of a sample without an image or a label, or whose image is damaged:
        'raise' ends with an error that names it, and 'skip' leaves it out.
      decode: Whether every image is decoded to see that it is whole.
      watch: Shows the progress.

    Returns:
      For each split, what was written.

    Raises:
      UserError: if files cannot be read or do not fit each other, or if `to` holds anything else.
    """
    to = os.path.abspath(to)
    inputs = {split: list(map(stamp, files)) for split, files in splits.items()}
    description = os.path.join(to, DESCRIPTION)
    if os.path.exists(description):
        written = descriptions.read(description)
        if written.get("inputs") != inputs:
            raise UserError(f"{to} holds a dataset that was prepared from other files, or fields")
        return {split: Progress(**one) for split, one in written["splits"].items()}
    if os.path.exists(to) and (not os.path.isdir(to) or os.listdir(to)):
        raise UserError(f"{to} exists, and is not empty: name a folder that is to be made")
    folder = to + UNFINISHED
    plan = planned(folder, splits, inputs, on_error)
    features = features_of(plan)
    written = {
        split: write_split(folder, split, files, plan, features, on_error, decode, watch)
        for split, files in splits.items()
    }
    _finish(folder, to, plan, features, written)
    return written


def _finish(
    folder: str, to: str, plan: Plan, features: Any, written: Mapping[str, Progress]
) -> None:
    """Names the shards, describes the dataset, and puts the folder in its place."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder),
        dataset_name=_dataset_name(to),
        template=_TEMPLATE,
        filetype_suffix=_FORMAT,
    )
    infos = []
    for split, progress in written.items():
        info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=progress.examples,
            num_bytes=sum(progress.bytes),
            filename_template=template.replace(split=split),
        )
        infos.append(info)
        for number, path in enumerate(info.filepaths):
            if not os.path.exists(path):  # It may have its name from an earlier start.
                os.replace(part(folder, split, number), path)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        filename_template=template,
        check_data=False,  # It would read by TensorFlow.
        description="Written by vit-jax prepare.",
    )
    splits = {split: vars(progress) for split, progress in written.items()}
    descriptions.save(os.path.join(folder, DESCRIPTION), {**vars(plan), "splits": splits})
    os.rename(folder, to)
    for name in (PLAN, *map(progress_file, written)):
        os.remove(os.path.join(to, name))


def _dataset_name(to: str) -> str:
    """The name that TensorFlow Datasets has for the folder: letters, digits and underscores."""
    name = re.sub(r"\W+", "_", os.path.basename(to).lower()).strip("_")
    return name if name[:1].isalpha() else f"dataset_{name}".rstrip("_")

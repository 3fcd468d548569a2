"""Finding the file that a fine-tuning run starts from."""

import csv

from etils import epath
from ml_collections import ConfigDict

from vit_jax.errors import UserError


def find_pretrained(config: ConfigDict) -> epath.Path | None:
    """The `.npz` that the config names, or None for training from scratch.

    `pretrained_dir/<model_name>.npz`; for an AugReg recipe `pretrained_dir/<file name>.npz`.

    Raises:
      UserError: when the file is not there.
    """
    if not config.pretrained_dir:
        return None
    directory = epath.Path(config.pretrained_dir)
    name = config.model_or_filename
    if name is None:
        name = config.model.model_name
    elif "-" not in name:
        name = _best_augreg(directory, name)
    path = directory / f"{name}.npz"
    if not path.exists():
        raise UserError(
            f"no checkpoint {path}. Set --config.pretrained_dir to a folder that holds "
            f"{path.name} (published: gs://vit_models/imagenet21k), or to '' to train from scratch."
        )
    return path


def _best_augreg(directory: epath.Path, model: str) -> str:
    """The ImageNet-21k file of `model` with the best upstream validation accuracy."""
    index = directory / "index.csv"
    if not index.exists():
        raise UserError(
            f"no {index}, which lists the AugReg checkpoints; name a file in full in place of "
            f"{model!r}, or put the published index.csv there"
        )
    with index.open() as f:
        rows = [
            row
            for row in csv.DictReader(f)
            if row["ds"] == "i21k" and row["filename"].split("-")[0] == model
        ]
    if not rows:
        raise UserError(f"{index} lists no ImageNet-21k checkpoint of {model!r}")
    return max(rows, key=lambda row: float(row["final_val"]))["filename"]

"""Finding the file that a fine-tuning run starts from."""

import csv
import pathlib

from ml_collections import ConfigDict

from vit_jax.checkpoint.files.fetch import fetch
from vit_jax.errors import UserError
from vit_jax.families.published import recommended


def find_pretrained(config: ConfigDict) -> pathlib.Path | None:
    """The checkpoint that the config names, downloaded if necessary; None to train from scratch.

    `config.pretrained` names a checkpoint of any readable format. If it is not set, the checkpoint
    is `<pretrained_dir>/<model_name>.npz`, or for an AugReg recipe
    `<pretrained_dir>/<file name>.npz`.

    Raises:
      UserError: if the checkpoint does not exist or cannot be downloaded.
    """
    if config.pretrained:
        path = fetch(config.pretrained)
        if not path.exists():
            raise UserError(f"no such file or directory --config.pretrained={config.pretrained}")
        return path
    if not config.pretrained_dir:
        return None
    directory = str(config.pretrained_dir).rstrip("/") or "/"
    name = config.model_or_filename
    if name is None:
        name = config.model.model_name
    elif "-" not in name:
        name = _best_augreg(directory, name)
    path = fetch(f"{directory}/{name}.npz")
    if not path.exists():
        raise UserError(
            f"no checkpoint {path}. Set --config.pretrained_dir to a folder that holds "
            f"{path.name} (published: gs://vit_models/imagenet21k), or to '' to train from scratch."
        )
    return path


def _best_augreg(directory: str, model: str) -> str:
    """The ImageNet-21k file of `model` with the best upstream validation accuracy."""
    with _augreg_index(directory, model).open() as f:
        rows = [
            row
            for row in csv.DictReader(f)
            if row["ds"] == "i21k" and row["filename"].split("-")[0] == model
        ]
    if not rows:
        raise UserError(f"{directory}/index.csv lists no ImageNet-21k checkpoint of {model!r}")
    return max(rows, key=lambda row: float(row["final_val"]))["filename"]


def _augreg_index(directory: str, model: str) -> pathlib.Path:
    advice = f"name a file in full in place of {model!r}"
    if best := recommended(model):
        advice += f" (its authors recommend {best!r})"
    try:
        index = fetch(f"{directory}/index.csv")
    except UserError as e:
        raise UserError(f"{e} It lists the AugReg checkpoints; without it, {advice}") from e
    if not index.exists():
        raise UserError(
            f"no {index}, which lists the AugReg checkpoints; {advice}, or put the published "
            "index.csv there"
        )
    return index

"""Finding the file that a fine-tuning run starts from."""

import logging
import pathlib

from ml_collections import ConfigDict

from vit_jax.checkpoint import augreg
from vit_jax.checkpoint.files.fetch import fetch
from vit_jax.errors import UserError
from vit_jax.families.published import recommended
from vit_jax.families.towers import IMAGE, TEXT

log = logging.getLogger(__name__)


def find_all(config: ConfigDict) -> dict[str, pathlib.Path]:
    """The checkpoints that the config names, by the branch of the parameters that each is for.

    '' is the whole model, as `find_pretrained` finds it; the others are the two towers of
    `config.contrastive`. All are downloaded if necessary.

    Raises:
      UserError: as `find_pretrained`; and for a whole model beside a tower.
    """
    whole = find_pretrained(config)
    towers: dict[str, pathlib.Path] = {}
    for branch, field in ((IMAGE, "image_tower"), (TEXT, "text_tower")):
        if given := config.contrastive[field]:
            towers[branch] = _existing(given, f"contrastive.{field}")
    if whole is not None and towers:
        raise UserError(
            f"config.pretrained ({whole}) is the whole model, towers included; set either it or "
            "config.contrastive.image_tower and text_tower"
        )
    return towers if whole is None else {"": whole}


def find_pretrained(config: ConfigDict) -> pathlib.Path | None:
    """The checkpoint that the config names, downloaded if necessary; None to train from scratch.

    `config.pretrained` names a checkpoint of any readable format. If it is not set, the checkpoint
    is `<pretrained_dir>/<model_name>.npz`, or for an AugReg recipe
    `<pretrained_dir>/<file name>.npz`.

    Raises:
      UserError: if the checkpoint does not exist or cannot be downloaded.
    """
    if config.pretrained:
        return _existing(config.pretrained, "pretrained")
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
            f"{path.name} (published: gs://vit_models/imagenet21k), or to '' to train from scratch;"
            " --config.pretrained names any other checkpoint or run."
        )
    return path


def _existing(location: str, field: str) -> pathlib.Path:
    path = fetch(location)
    if not path.exists():
        raise UserError(f"no such file or directory --config.{field}={location}")
    return path


def _best_augreg(directory: str, model: str) -> str:
    """The ImageNet-21k file of `model` with the best upstream validation accuracy."""
    best = _augreg_index(directory, model).best(model)
    if best is None:
        raise UserError(
            f"{directory}/{augreg.INDEX} lists no ImageNet-21k checkpoint of {model!r} with its "
            f"{augreg.UPSTREAM}"
        )
    name = best[augreg.FILE]
    log.info("%s has the best %s of %s: %.3f", name, augreg.UPSTREAM, model, best[augreg.UPSTREAM])
    return name


def _augreg_index(directory: str, model: str) -> augreg.Index:
    advice = f"name a file in full in place of {model!r}"
    if best := recommended(model):
        advice += f" (its authors recommend {best!r})"
    needed = {augreg.FILE: str, "ds": str, augreg.UPSTREAM: float}
    try:
        return augreg.read_index(f"{directory}/{augreg.INDEX}", needed)
    except UserError as e:
        raise UserError(
            f"{str(e).removesuffix('.')}. It lists the AugReg checkpoints, published at "
            f"{augreg.PUBLISHED}; without it, {advice}"
        ) from e

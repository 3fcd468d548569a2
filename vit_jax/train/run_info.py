"""`workdir/run.json`: the facts of a run, so that other commands can read it without a config."""

import dataclasses
import json
import os
import pathlib
from typing import Any, Self

from ml_collections import ConfigDict

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline import recipes
from vit_jax.masking import masked_config
from vit_jax.train import provenance

_FILE = "run.json"


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """The facts of one run.

    Attributes:
      model: The constructor fields of the model.
      num_classes: The number of classes of the head.
      class_names: The names of the classes, in the order of the logits.
      preprocess: The preparation of images for evaluation.
      config: The whole config, without secrets.
      versions: The versions of this package and of the packages that the results depend on.
      starts: One entry for each start of the run, the first one first; see `provenance.start`.
    """

    model: dict[str, Any]
    num_classes: int
    class_names: list[str]
    preprocess: Preprocess
    config: dict[str, Any]
    versions: dict[str, str]
    starts: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, config: ConfigDict, class_names: list[str]) -> Self:
        """The facts of a run that starts now."""
        preprocess = recipes.preprocess(config.pp)
        as_dict = masked_config(config.to_dict())
        return cls(
            as_dict["model"],
            len(class_names),
            class_names,
            preprocess,
            as_dict,
            provenance.versions(),
        )


def save(info: RunInfo, workdir: str | os.PathLike) -> None:
    """Writes the file under a temporary name, then renames it.

    Raises:
      UserError: if it cannot be written, for example because the disk is full.
    """
    path = pathlib.Path(workdir) / _FILE
    fields = vars(info) | {"preprocess": info.preprocess.to_dict()}
    temporary = path.with_name(f".{_FILE}.tmp")
    try:
        temporary.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def load(workdir: str | os.PathLike) -> RunInfo:
    """Reads the facts of the run in `workdir`.

    Raises:
      UserError: if `workdir` is not the folder of a run, or its `run.json` is malformed.
    """
    path = stores.join(workdir, _FILE)
    try:
        fields = json.loads(stores.read_bytes(path))
        typed = {
            "preprocess": Preprocess.from_dict(fields["preprocess"]),
            "starts": tuple(fields.get("starts", ())),
        }
        return RunInfo(**fields | typed)
    except OSError as e:
        raise UserError(
            f"{workdir} is not a run directory: no readable {_FILE} ({e.strerror})"
        ) from e
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(f"{path} is not a description of a run: {e}") from e


def load_if_any(workdir: str | os.PathLike) -> RunInfo | None:
    """The facts of the run in `workdir`, as `load` reads them; None before its first start."""
    return load(workdir) if is_run(workdir) else None


def is_run(folder: stores.Location) -> bool:
    """Whether `folder` is the workdir of a run."""
    return stores.is_file(stores.join(folder, _FILE))

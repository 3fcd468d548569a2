"""`workdir/run.json`: what a run says of itself, so that other commands need no config."""

import dataclasses
import json
import os
from typing import Any, Self

from etils import epath
from ml_collections import ConfigDict

import vit_jax
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline import recipes

_FILE = "run.json"


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """Facts of one run.

    Attributes:
      model: Constructor fields.
      num_classes: Of the head.
      class_names: In the order of the logits.
      preprocess: How evaluation prepared its images.
      config: The whole config.
      versions: Of this package and those that the numbers depend on.
    """

    model: dict[str, Any]
    num_classes: int
    class_names: list[str]
    preprocess: Preprocess
    config: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def of(cls, config: ConfigDict, class_names: list[str]) -> Self:
        """The facts of a run that starts now."""
        preprocess = recipes.preprocess(config.pp)
        as_dict = config.to_dict()
        return cls(
            as_dict["model"], len(class_names), class_names, preprocess, as_dict, _versions()
        )


def save(info: RunInfo, workdir: str | os.PathLike) -> None:
    """Writes the file under a temporary name, then renames it."""
    path = epath.Path(workdir) / _FILE
    fields = vars(info) | {"preprocess": info.preprocess.to_dict()}
    temporary = path.with_name(f".{_FILE}.tmp")
    temporary.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(path)


def load(workdir: str | os.PathLike) -> RunInfo:
    """Raises UserError when `workdir` is no run directory."""
    path = epath.Path(workdir) / _FILE
    try:
        fields = json.loads(path.read_text())
        return RunInfo(**fields | {"preprocess": Preprocess.from_dict(fields["preprocess"])})
    except OSError as e:
        raise UserError(f"{workdir} is not a run directory: no readable {_FILE} ({e})") from e
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(f"{path} is not a description of a run: {e}") from e


def _versions() -> dict[str, str]:
    from importlib import metadata

    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"vit-jax": vit_jax.__version__} | {p: metadata.version(p) for p in packages}

"""Checks that a resumed run has the config with which the run began."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.configs import common
from vit_jax.errors import UserError, some
from vit_jax.train import run_info

# Fields that may change in a resumed run. They say where data lies, how fast it is read, how arrays
# lie on the devices, what is reported and which checkpoints are kept; no update depends on them
# beyond rounding. `total_steps` may not change because the learning rate depends on it, and
# `accum_steps` may not change because dropout depends on it.
HARMLESS = (
    "attend",
    "batch_eval",
    "batch_eval_device",
    "checkpoint_every",
    "data.num_workers",
    "eval_every",
    "keep_best",
    "keep_checkpoints",
    "mesh",
    "model_or_filename",
    "prefetch",
    "pretrained",
    "pretrained_dir",
    "profile",
    "progress_every",
    "sharding_rules",
    "shuffle_buffer",
    "tfds_data_dir",
    "tfds_manual_dir",
    "trainer",
)
_MISSING = "unset"


def require_same_config(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Raises UserError if the complete `config` differs from the config of the run in `workdir`.

    The message lists the differing fields. A field that was added after the run began counts as
    having had its default.
    """
    defaults = _flat(common.get_config())
    # Models have no default: the field is None there, and becomes several fields in a run's config.
    del defaults["model"]
    began = defaults | _flat(run_info.load(workdir).config)
    now = _flat(config)
    differing = [
        f"{name} was {began.get(name, _MISSING)!r}, is {now.get(name, _MISSING)!r}"
        for name in sorted(began.keys() | now.keys())
        if not _harmless(name) and began.get(name, _MISSING) != now.get(name, _MISSING)
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config: {'; '.join(differing)}. Use that config "
            "or another --workdir; --allow_other_config goes on with this one"
        )


def require_same_classes(class_names: Sequence[str], workdir: str | os.PathLike) -> None:
    """Raises UserError if the run in `workdir` was trained on other classes, or in another order.

    The output of a class is its place among the names, so that the labels would change their
    meaning.
    """
    began = run_info.load(workdir).class_names
    if list(class_names) != began:
        raise UserError(
            f"{workdir} holds a run with the classes {some(began, 10)}; the dataset now has "
            f"{some(class_names, 10)}. Use that dataset or another --workdir; "
            "--allow_other_config goes on, class i being what was class i"
        )


def _harmless(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in HARMLESS)


def _flat(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """One entry per leaf; tuples become lists as in JSON, so that both configs compare equal."""
    as_dict = config.to_dict() if isinstance(config, ConfigDict) else config
    return dict(common.flatten(json.loads(json.dumps(as_dict)), prefix=()))

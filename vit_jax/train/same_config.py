"""Checks that a resumed run has the config with which the run began."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.configs import common
from vit_jax.errors import UserError, some
from vit_jax.masking import masked_config
from vit_jax.train import run_info

# Fields that may change in a resumed run. They say where data lies, how fast it is read, how arrays
# lie on the devices, what is reported, which checkpoints are kept, and what happens when a run goes
# wrong; no update that was made depends on them beyond rounding. `total_steps` may not change
# because the learning rate depends on it, and `accum_steps` may not change because dropout depends
# on it.
HARMLESS = (
    "attend",
    "batch_eval",
    "batch_eval_device",
    "checkpoint_every",
    "contrastive.image_tower",
    "contrastive.rows",
    "contrastive.text_tower",
    "data.num_workers",
    "eval_every",
    "evals",
    "keep_best",
    "keep_checkpoints",
    "keep_every",
    "log_norms_every",
    "max_rollbacks",
    "max_skips",
    "mesh",
    "model_or_filename",
    "on_nonfinite",
    "prefetch",
    "pretrained",
    "pretrained_dir",
    "profile",
    "progress_every",
    "resume_from",
    "sharding_rules",
    "shuffle_buffer",
    "spike",
    "watchdog",
    "tfds_data_dir",
    "tfds_manual_dir",
    "trackers",
    "trainer",
)
UNSET = "unset"
_ADVICE = (
    "Use that dataset or another --workdir; --allow_other_config goes on, class i being what was "
    "class i"
)


def require_same_config(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Raises UserError if the complete `config` differs from the config of the run in `workdir`.

    The message lists the differing fields, without those of `HARMLESS`.
    """
    differing = [text for name, text in changed(config, workdir).items() if not _harmless(name)]
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config: {'; '.join(differing)}. Use that config "
            "or another --workdir; --allow_other_config goes on with this one"
        )


def changed(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, str]:
    """The fields in which the complete `config` differs from that of the run in `workdir`.

    Returns:
      A text 'FIELD was …, is …' for each, by the names of the fields.

    Raises:
      UserError: if `workdir` holds no run.
    """
    changes = differences(run_info.load(workdir).config, masked_config(config.to_dict()))
    return {name: f"{name} was {was!r}, is {now!r}" for name, (was, now) in changes.items()}


def differences(began: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs of runs differ, by dotted name, with the value of each.

    The value is `UNSET` for a field that one of the models does not have.
    """
    before, after = completed(began), completed(now)
    pairs = {
        name: (before.get(name, UNSET), after.get(name, UNSET))
        for name in sorted(before.keys() | after.keys())
    }
    return {name: (was, value) for name, (was, value) in pairs.items() if was != value}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of a run's config by its dotted name, with values as JSON has them.

    A field that was added to this package after the run began has its default.
    """
    defaults = _flat(common.get_config().to_dict())
    # Models have no default: the field is None there, and becomes several fields in a run's config.
    del defaults["model"]
    return defaults | _flat(config)


def require_same_classes(
    class_names: Sequence[str], workdir: str | os.PathLike, advice: str = _ADVICE
) -> None:
    """Raises UserError if the run in `workdir` was trained on other classes, or in another order.

    The output of a class is its place among the names, so that the labels would change their
    meaning. The message ends in `advice`.
    """
    began = run_info.load(workdir).class_names
    if list(class_names) != began:
        raise UserError(
            f"{workdir} holds a run with the classes {some(began, 10)}; the dataset now has "
            f"{some(class_names, 10)}. {advice}"
        )


def _harmless(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in HARMLESS)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """One entry per leaf; tuples become lists as in JSON, so that both configs compare equal."""
    return dict(common.flatten(json.loads(json.dumps(config)), prefix=()))

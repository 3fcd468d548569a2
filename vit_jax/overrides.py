"""`--set FIELD=VALUE` changes a field of a config, also a model's field that the config leaves out.

ml_collections' own flags, `--config.FIELD=VALUE`, know only the fields that the config sets. A
model's constructor has more fields, such as `model.transformer.scan`.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.configs import common
from vit_jax.durations import Duration
from vit_jax.errors import UserError


def overridden(config: ConfigDict, settings: Sequence[str]) -> tuple[ConfigDict, dict[str, Any]]:
    """A copy of `config` with `settings` applied, and the settings as a dict of field to value.

    Args:
      config: A config.
      settings: Strings 'FIELD=VALUE'.

    Raises:
      UserError: for a string without '=', and as `changed` does.
    """
    given = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting!r}: expected FIELD=VALUE")
        given[field.removeprefix("config.")] = _value(text)
    return changed(config, given), given


def changed(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """An unlocked copy of `config` in which the fields have these values, by their dotted names.

    An unknown field is refused only later, by `configs.common.with_defaults` or by the model.

    Raises:
      UserError: for an unknown group of fields, or a value of another type than the field's.
    """
    config = config.copy_and_resolve_references().unlock()
    for field, value in values.items():
        _set(config, field, value)
    return config


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _set(config: Any, field: str, value: Any) -> None:
    *path, name = field.split(".")
    if path[:1] == ["evals"] and len(path) == 2 and path[1] not in config.evals:
        config.evals[path[1]] = ConfigDict()  # An evaluation may be named here first.
    for part in path:
        if not hasattr(config.get(part), "items"):
            raise UserError(f"--set {field}: config has no group of fields {part!r}")
        config = config[part]
    if path[:1] == ["model"] and not hasattr(config.get(name), "items"):
        with config.ignore_type():  # A constructor may take several: `remat` a flag or names.
            config[name] = value
        return
    if isinstance(common.RANGES.get(field), Duration) or path[:1] == ["evals"]:
        with config.ignore_type():  # Steps or a text; whoever completes the config checks them.
            config[name] = value
        return
    before = config.get(name)
    try:
        config[name] = float(value) if isinstance(before, float) and value is not None else value
    except (TypeError, ValueError) as error:  # ConfigDict keeps a field's type.
        kind, text = type(before).__name__, str(value)
        raise UserError(f"--set {field}: expected a value of type {kind}; got {text!r}") from error

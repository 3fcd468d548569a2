"""`--set FIELD=VALUE`: changes of a config, in fields that it has and in a model's that it has not.

ml_collections' own flags, `--config.FIELD=VALUE`, know only the fields that the file sets; a
model's constructor has more (`model.transformer.scan`).
"""

import ast
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.errors import UserError


def overridden(config: ConfigDict, settings: Sequence[str]) -> tuple[ConfigDict, dict[str, Any]]:
    """A copy with `settings`, each 'FIELD=VALUE', and what was set: field -> value.

    A field that nothing has is found out later, by `configs.common.with_defaults` or the model.

    Raises:
      UserError: for a setting that is none, or in a group of fields that there is not.
    """
    config = config.copy_and_resolve_references().unlock()
    given = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting!r}: expected FIELD=VALUE")
        field = field.removeprefix("config.")
        given[field] = _set(config, field, value)
    return config, given


def _set(config: Any, field: str, text: str) -> Any:
    """Returns the value, a float where the field was one."""
    *path, name = field.split(".")
    for part in path:
        if not hasattr(config.get(part), "items"):
            raise UserError(f"--set {field}: config has no group of fields {part!r}")
        config = config[part]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    before = config.get(name)
    try:
        config[name] = float(value) if isinstance(before, float) and value is not None else value
    except (TypeError, ValueError) as error:  # ConfigDict keeps a field's type.
        kind = type(before).__name__
        raise UserError(f"--set {field}: expected a value of type {kind}; got {text!r}") from error
    return config[name]

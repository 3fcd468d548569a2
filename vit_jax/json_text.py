"""JSON that every parser reads."""

import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """The value as JSON; a number that is NaN or infinite, which JSON does not know, is null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Vision Transformers in JAX/Flax.

Importing this package loads neither JAX nor Flax: its modules, which `dir(vit_jax)` lists, load
when they are first used.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors, which would not know the modules otherwise
    from vit_jax import (
        checkpoint,
        configs,
        errors,
        evaluate,
        families,
        inference,
        inference_time,
        input_pipeline,
        layers,
        models,
        parity,
        plan,
        test_utils,
        train,
        utils,
    )

__version__ = "0.1.0"

__all__ = [
    "checkpoint",
    "configs",
    "errors",
    "evaluate",
    "families",
    "inference",
    "inference_time",
    "input_pipeline",
    "layers",
    "models",
    "parity",
    "plan",
    "test_utils",
    "train",
    "utils",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"vit_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

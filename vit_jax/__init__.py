"""Vision Transformers in JAX/Flax.

model = vit_jax.load("hf://facebook/dinov2-base")  # or a file, a folder, a run
features = model.features(["photo.jpg"])

Importing this package loads neither JAX nor Flax: its modules, which `dir(vit_jax)` lists, load
when they are first used.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

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
        loaded,
        models,
        parity,
        plan,
        test_utils,
        train,
        utils,
    )
    from vit_jax.loaded import Loaded

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
    "loaded",
    "models",
    "parity",
    "plan",
    "test_utils",
    "train",
    "utils",
]


def load(what: Any, model: str | None = None, **how: Any) -> "Loaded":
    """A model ready for use, from a file, a folder, a run or an address; see `loaded.load`."""
    from vit_jax import loaded

    return loaded.load(what, model, **how)


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"vit_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "load", "__version__"]

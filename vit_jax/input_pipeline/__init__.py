"""Batches of examples from TensorFlow Datasets, folders, CSV files or ImageNet's tar files.

The package reads with Grain and does not need TensorFlow. Importing it is cheap: TFDS, Grain and
OpenCV are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.input_pipeline.loader import (
        get_data_from_directory,
        get_data_from_tfds,
        get_datasets,
    )
    from vit_jax.input_pipeline.sources import get_dataset_info, get_directory_info, get_tfds_info

__all__ = [
    "get_data_from_directory",
    "get_data_from_tfds",
    "get_dataset_info",
    "get_datasets",
    "get_directory_info",
    "get_tfds_info",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "sources" if name.endswith("_info") else "loader"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)

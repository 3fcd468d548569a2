"""Images in, batches out: TensorFlow Datasets or folders, read with Grain, without TensorFlow.

Importing this package is cheap; TFDS, Grain and OpenCV load when first used.
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

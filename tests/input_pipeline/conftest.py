"""Small real datasets: the digits, and a folder of crops from scikit-learn's two photographs."""

from pathlib import Path

import numpy as np
import pytest
from image_helpers import TEST_PER_CLASS, TRAIN_PER_CLASS, encode
from sklearn.datasets import load_sample_images

from vit_jax.configs import common


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """China and a flower, uint8 [427, 640, 3]."""
    return list(load_sample_images().images)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> str:
    """A TFDS directory in which the digits are prepared."""
    from vit_jax.input_pipeline.sources import TfdsSource

    directory = str(tmp_path_factory.mktemp("tfds"))
    TfdsSource("digits", "train", directory)
    return directory


@pytest.fixture(scope="session")
def folder(tmp_path_factory, photos) -> Path:
    """{train,test}/{china,flower}: every image a different crop."""
    root = tmp_path_factory.mktemp("folder")
    suffixes = [".jpg", ".JPG", ".jpeg", ".png", ".webp"]
    for mode, count in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        for name, photo in zip(("china", "flower"), photos, strict=True):
            directory = root / mode / name
            directory.mkdir(parents=True)
            for i in range(count):
                suffix = suffixes[i % len(suffixes)]
                file_format = {".png": "png", ".webp": "webp"}.get(suffix, "jpeg")
                crop = photo[10 * i : 10 * i + 48, 20 * i : 20 * i + 64]
                (directory / f"{i}{suffix}").write_bytes(encode(crop, file_format))
            (directory / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def config(folder):
    """A complete config on `folder`."""
    config = common.get_config().unlock()
    config.dataset = str(folder)
    config.pp.crop = 16
    config.batch, config.batch_eval = 6, 4
    return config

"""Pixels as transformers and timm prepare them from what we write beside weights, against ours.

What a library cannot be told is said when the file is written; whatever is not said is equal, up to
the rounding of transformers' resizing.
"""

import functools
import itertools

import numpy as np
import pytest
from PIL import Image
from prepared_elsewhere import (
    LEVELS,
    LIBRARIES,
    differences,
    dimmed,
    photographs,
    registered_ways,
)

from vit_jax.checkpoint import hf_dir
from vit_jax.families.preprocess import Preprocess

SIZES = (63, (48, 80))
CROPS = (1.0, 0.875, 9 / 14)
WAYS = [
    Preprocess(size, crop, resize, method, antialias, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    for size, crop, resize in itertools.product(SIZES, CROPS, ("squash", "shortest"))
    for method, antialias in (("bilinear", False), ("bilinear", True), ("bicubic", True))
]


@functools.cache
def smooth_images() -> list[np.ndarray]:
    """Smooth random images of many shapes, with a little noise."""
    rng = np.random.default_rng(0)
    found = []
    for height, width in rng.integers(40, 200, (24, 2)):
        coarse = rng.integers(0, 256, (height // 10 + 2, width // 10 + 2, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth).astype(int) + rng.integers(-8, 9, (height, width, 3))
        found.append(noisy.clip(0, 255).astype(np.uint8))
    return found


@pytest.mark.parametrize("library", LIBRARIES)
def test_pixels_are_ours_or_the_difference_is_said(library, tmp_path):
    wrong = []
    for place, way in enumerate(WAYS):
        pixels, said = LIBRARIES[library](way, tmp_path)
        tried = smooth_images() if said else smooth_images()[place % 4 :: 4]
        differs = any(differences(pixels, x, way).max() > LEVELS[library] for x in tried)
        if bool(said) != differs:
            wrong.append((way, differs, said))
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_hundred_photographs_are_prepared_alike(library, tmp_path):
    tried, wrong = list(photographs(100)), []
    if library == "hf":  # what is clipped differs by more: benchmarks/preprocessing.py
        tried = [dimmed(x) for x in tried]
    for way in registered_ways() + WAYS:
        pixels, said = LIBRARIES[library](way, tmp_path)
        worst = max(differences(pixels, x, way).max() for x in tried)
        if bool(said) != (worst > LEVELS[library]):
            wrong.append((way, worst, said))
    assert not wrong


def test_a_centre_that_is_cropped_is_written():
    """By a processor that crops in every version of transformers: ViT's does in some only."""
    way = Preprocess(224, 0.875, "shortest", "bicubic", antialias=True)
    fields = hf_dir.preprocessor_json(way, (224, 224))
    assert fields["image_processor_type"] == "CLIPImageProcessor"
    assert fields["size"] == {"shortest_edge": 256}
    assert (fields["do_center_crop"], fields["crop_size"]) == (True, {"height": 224, "width": 224})
    assert hf_dir.preprocess(fields) == way
    whole = hf_dir.preprocessor_json(Preprocess(224), (224, 224))
    assert "do_center_crop" not in whole

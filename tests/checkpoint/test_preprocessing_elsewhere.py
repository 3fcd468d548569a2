"""Pixels as transformers and timm prepare them from what we write beside weights, against ours.

What a library cannot be told is said when the file is written; whatever is not said is equal, up to
the rounding of transformers' resizing.
"""

import functools
import itertools
import json

import numpy as np
import pytest
import timm.data
from PIL import Image
from transformers import AutoImageProcessor

from vit_jax.checkpoint import beside, hf_dir
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import resolve
from vit_jax.input_pipeline.transforms import preprocess_image

LEVELS = {"hf": 2.01, "timm": 0.01}  # largest difference, where a pixel has 0 to 255
SIZES = (63, (48, 80))
CROPS = (1.0, 0.875, 9 / 14)
WAYS = [
    Preprocess(size, crop, resize, method, antialias, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    for size, crop, resize in itertools.product(SIZES, CROPS, ("squash", "shortest"))
    for method, antialias in (("bilinear", False), ("bilinear", True), ("bicubic", True))
]


@functools.cache
def photographs() -> list[np.ndarray]:
    """Smooth random images of many shapes, with a little noise."""
    rng = np.random.default_rng(0)
    found = []
    for height, width in rng.integers(40, 200, (24, 2)):
        coarse = rng.integers(0, 256, (height // 10 + 2, width // 10 + 2, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth).astype(int) + rng.integers(-8, 9, (height, width, 3))
        found.append(noisy.clip(0, 255).astype(np.uint8))
    return found


def transformers_pixels(way: Preprocess, folder):
    fields = hf_dir.preprocessor_json(way, way.height_width)
    (folder / hf_dir.PREPROCESSOR).write_text(json.dumps(fields))
    processor = AutoImageProcessor.from_pretrained(folder)

    def pixels(photograph: np.ndarray) -> np.ndarray:
        found = processor(Image.fromarray(photograph), return_tensors="np")["pixel_values"]
        return found[0].transpose(1, 2, 0)

    return pixels, hf_dir.preprocessing_differences(way, way.height_width)


def timm_pixels(way: Preprocess, _):
    config = resolve("ViT-Ti_16").config.to_dict()
    described = beside.timm_description(
        config, num_classes=3, image_size=way.height_width, preprocess=way
    )
    told = timm.data.resolve_data_config(pretrained_cfg=described["pretrained_cfg"])
    transform = timm.data.create_transform(**told)

    def pixels(photograph: np.ndarray) -> np.ndarray:
        return transform(Image.fromarray(photograph)).numpy().transpose(1, 2, 0)

    return pixels, beside.preprocessing_differences(way)


@pytest.mark.parametrize(("library", "make"), [("hf", transformers_pixels), ("timm", timm_pixels)])
def test_pixels_are_ours_or_the_difference_is_said(library, make, tmp_path):
    wrong = []
    for place, way in enumerate(WAYS):
        pixels, said = make(way, tmp_path)
        tried = photographs() if said else photographs()[place % 4 :: 4]
        differs = any(
            np.abs((pixels(x) - preprocess_image(x, way)) * way.std * 255).max() > LEVELS[library]
            for x in tried
        )
        if bool(said) != differs:
            wrong.append((way, differs, said))
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

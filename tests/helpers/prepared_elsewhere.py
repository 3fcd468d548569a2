"""Pixels as transformers and timm prepare them from what we write beside weights; photographs."""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import timm.data
from image_helpers import encode
from PIL import Image
from transformers import AutoImageProcessor

from vit_jax.checkpoint import beside, hf_dir
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import registered, resolve
from vit_jax.input_pipeline.decode import decode_image
from vit_jax.input_pipeline.transforms import preprocess_image

Pixels = Callable[[np.ndarray], np.ndarray]


def transformers_pixels(
    way: Preprocess, folder: pathlib.Path, **options: str
) -> tuple[Pixels, list[str]]:
    """How transformers prepares an image, and the differences that are said when it is written."""
    fields = hf_dir.preprocessor_json(way, way.height_width)
    (folder / hf_dir.PREPROCESSOR).write_text(json.dumps(fields))
    processor = AutoImageProcessor.from_pretrained(folder, **options)

    def pixels(photograph: np.ndarray) -> np.ndarray:
        found = processor(Image.fromarray(photograph), return_tensors="np")["pixel_values"]
        return found[0].transpose(1, 2, 0)

    return pixels, hf_dir.preprocessing_differences(way, way.height_width)


def timm_pixels(way: Preprocess, _: pathlib.Path) -> tuple[Pixels, list[str]]:
    """How timm prepares an image, and the differences that are said when it is written."""
    config = resolve("ViT-Ti_16").config.to_dict()
    described = beside.timm_description(
        config, num_classes=3, image_size=way.height_width, preprocess=way
    )
    told = timm.data.resolve_data_config(pretrained_cfg=described["pretrained_cfg"])
    transform = timm.data.create_transform(**told)

    def pixels(photograph: np.ndarray) -> np.ndarray:
        return transform(Image.fromarray(photograph)).numpy().transpose(1, 2, 0)

    return pixels, beside.preprocessing_differences(way)


LIBRARIES = {
    "hf": transformers_pixels,
    "hf, pil": functools.partial(transformers_pixels, backend="pil"),
    "timm": timm_pixels,
}
# The largest difference, where a pixel has 0 to 255. By itself, transformers resizes with
# torchvision, which rounds otherwise than Pillow, with which timm and we resize; and what a bicubic
# kernel overshoots it clips elsewhere, so that pictures at full contrast differ by more.
LEVELS = {"hf": 2.01, "hf, pil": 0.01, "timm": 0.01}


def differences(pixels: Pixels, photograph: np.ndarray, way: Preprocess) -> np.ndarray:
    """|theirs - ours| of every pixel and channel, in levels of 0 to 255."""
    theirs, ours = pixels(photograph), preprocess_image(photograph, way)
    assert theirs.shape == ours.shape
    return np.abs((theirs - ours) * way.std * 255)


def dimmed(photograph: np.ndarray) -> np.ndarray:
    """Half the contrast, so that no kernel shoots over 0 or 255 and nothing is clipped."""
    return (64 + photograph // 2).astype(np.uint8)


def registered_ways() -> list[Preprocess]:
    """Every preprocessing that a registered model has, once."""
    return list(dict.fromkeys(spec.preprocess for spec in registered().values()))


def photographs(count: int) -> Iterator[np.ndarray]:
    """Parts of the colour photographs in scikit-image and scikit-learn, as JPEG stores them.

    The sides are 80 to 600 pixels, of any ratio up to 1:3, and the quality is 60 to 97.
    """
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
    whole = [getattr(data, name)() for name in names] + list(load_sample_images().images)
    rng = np.random.default_rng(0)
    for place in range(count):
        image = Image.fromarray(whole[place % len(whole)][..., :3])
        height = int(rng.integers(80, 600))
        width = int(np.clip(height * 3 ** rng.uniform(-1, 1), 80, 600))
        # The largest part of this ratio, or down to half of it.
        share = min(image.width / width, image.height / height) * rng.uniform(0.5, 1)
        across, down = int(width * share), int(height * share)
        left, top = rng.integers(image.width - across + 1), rng.integers(image.height - down + 1)
        box = (int(left), int(top), int(left) + across, int(top) + down)
        part = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
        yield decode_image(encode(part, "jpeg", quality=int(rng.integers(60, 98))))

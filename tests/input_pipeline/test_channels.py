"""Images of any number of channels and any shape, from the file to what the model gets."""

import io

import numpy as np
import pytest
from image_helpers import encode
from PIL import Image

from vit_jax.configs import common
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline import recipes
from vit_jax.input_pipeline import transforms as tr
from vit_jax.input_pipeline.channels import decode_channels
from vit_jax.input_pipeline.decode import DamagedImage

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3), np.uint8)
GREY = COLOURS[..., 0]
BANDS = RNG.integers(0, 256, (6, 8, 5), np.uint8)


def _pages() -> bytes:
    first, *others = (Image.fromarray(np.ascontiguousarray(b)) for b in np.moveaxis(BANDS, -1, 0))
    return encode(first, "tiff", save_all=True, append_images=others)


def _npy(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("encoded", "channels", "wanted"),
    [
        (encode(GREY), 1, GREY[..., None]),
        (encode(GREY), 3, np.stack([GREY] * 3, -1)),
        (encode(COLOURS), 1, np.asarray(Image.fromarray(COLOURS).convert("L"))[..., None]),
        (encode(np.concatenate([COLOURS, COLOURS[..., :1]], 2)), 4, np.dstack([COLOURS, GREY])),
        (_pages(), 5, BANDS),
        (_npy(BANDS), 5, BANDS),
        (_npy(COLOURS), 3, COLOURS),
        (_npy(GREY), 1, GREY[..., None]),
    ],
)
def test_channels_are_read(encoded, channels, wanted):
    np.testing.assert_array_equal(decode_channels(encoded, channels), wanted)


@pytest.mark.parametrize(
    ("encoded", "channels", "message"),
    [
        (encode(COLOURS), 5, "x.png has 3 channels, and the model takes images of 5"),
        (_npy(BANDS), 3, "x.png has 5 channels, and the model takes images of 3"),
        (_npy(BANDS / 255), 5, "expected pixels of uint8"),
        (_npy(BANDS)[:90], 5, "cannot decode x.png"),
        (_pages()[:90], 5, "cannot decode x.png"),
    ],
)
def test_other_channels_are_no_image(encoded, channels, message):
    with pytest.raises(DamagedImage, match=message):
        decode_channels(encoded, channels, "x.png")


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("augment", ["inception", "crop", "random_resized_crop", "digits", "none"])
def test_every_step_keeps_channels_and_shape(channels, augment):
    pp = common.get_config().pp
    with pp.unlocked():
        pp.channels, pp.crop, pp.augment, pp.erasing = channels, (16, 32), augment, 1.0
    record = {"image": RNG.integers(0, 256, (40, 50, channels), np.uint8), "label": 0}
    for method in tr.RESIZE:
        pp.resize_method = method
        recipes.check(pp)
        trained = recipes.train_transform(pp, 2)(record, np.random.default_rng(0))["image"]
        evaluated = recipes.eval_transform(pp, 2)(record)["image"]
        assert trained.shape == evaluated.shape == (16, 32, channels)
        prepared = tr.preprocess_image(record["image"], recipes.preprocess(pp))
        np.testing.assert_allclose(prepared, evaluated, atol=1e-5)


def test_a_channel_is_resized_as_it_is_among_three():
    image = RNG.integers(0, 256, (40, 50, 3), np.uint8)
    for method in ("bilinear", "bicubic"):
        spec = Preprocess((16, 24), 0.9, "shortest", method, antialias=True)
        whole = tr.preprocess_image(image, spec)
        one = tr.preprocess_image(image[..., 1:2], spec.for_channels(1))
        np.testing.assert_array_equal(one, whole[..., 1:2])


def test_oblong_images_are_prepared_as_timm_does_it():
    from timm.data.transforms_factory import create_transform

    image = Image.fromarray(RNG.integers(0, 256, (60, 90, 3), np.uint8))
    for size in ((32, 48), (48, 32), (16, 64)):
        spec = Preprocess(size, 0.875, "shortest", "bicubic", antialias=True)
        theirs = create_transform(
            (3, *size), crop_pct=0.875, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
        )
        wanted = theirs(image).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(tr.preprocess_image(np.asarray(image), spec), wanted, atol=1e-6)

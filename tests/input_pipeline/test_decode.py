"""OpenCV takes plain JPEGs only, and then to Pillow's pixels."""

import io

import cv2
import numpy as np
import pytest
from image_helpers import encode
from PIL import Image

from vit_jax.errors import UserError
from vit_jax.input_pipeline import decode
from vit_jax.input_pipeline.decode import DamagedImage, decode_image


def pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"quality": 30}, {"optimize": True}]
)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_plain_jpegs_are_opencvs_and_pillows_pixels(photos, subsampling, options):
    encoded = encode(photos[0][:201, :301], "jpeg", subsampling=subsampling, **options)
    fast = decode._decode_plain_jpeg(encoded)
    assert fast is not None
    np.testing.assert_array_equal(fast, pillow(encoded))
    np.testing.assert_array_equal(fast, decode_image(encoded))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_pillow_takes_jpegs_of_other_channels(photos, mode):
    encoded = encode(Image.fromarray(photos[0][:40, :50]).convert(mode), "jpeg")
    assert decode._decode_plain_jpeg(encoded) is None
    np.testing.assert_array_equal(decode_image(encoded), pillow(encoded))


@pytest.mark.parametrize("orientation", range(9))
def test_jpegs_are_turned_as_pillow_turns_them(photos, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(photos[0][:33, :57], "jpeg", exif=exif)
    assert decode._decode_plain_jpeg(encoded) is not None
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    np.testing.assert_array_equal(decode_image(encoded), upright)


def test_orientation_in_xmp(photos):
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    encoded = encode(photos[0][:33, :57], "jpeg", xmp=packet)
    assert decode._decode_plain_jpeg(encoded) is None
    assert decode_image(encoded).shape == (57, 33, 3)


def test_a_jpeg_that_was_cut_off_is_damaged(photos):
    exif = Image.Exif()
    exif[0x010E] = "a description" * 20
    encoded = encode(photos[0][:64, :64], "jpeg", exif=exif)
    for length in [0, 1, 2, 3, 10, *range(20, len(encoded) - 2, 97)]:
        # With the end-of-image marker where it was cut as well, as an embedded thumbnail has it.
        header = encoded.index(b"\xff\xda")
        for end in (b"", b"\xff\xd9") if length < header else (b"",):
            with pytest.raises(DamagedImage, match="cannot decode a picture"):
                decode_image(encoded[:length] + end, "a picture")


def test_opencv_alone_would_not_do(photos, monkeypatch):
    """Negative control of the marker's check: a reader that fills up with grey is not believed."""
    encoded = encode(photos[0][:64, :64], "jpeg")[:-400]
    grey = np.full((64, 64, 3), 128, np.uint8)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: grey)
    with pytest.raises(UserError, match=r"(?i)truncated"):
        decode_image(encoded)


def test_what_follows_the_image_is_left_alone(photos):
    encoded = encode(photos[0][:40, :50], "jpeg")
    np.testing.assert_array_equal(decode_image(encoded + b"\0\0 more"), pillow(encoded))

"""Every format, mode, depth and orientation gives Pillow's pixels, or is refused with a reason."""

import io
import struct

import cv2
import numpy as np
import pytest
from image_helpers import encode
from PIL import Image, ImageOps

from vit_jax.errors import UserError
from vit_jax.input_pipeline import decode
from vit_jax.input_pipeline.decode import DamagedImage, decode_image
from vit_jax.input_pipeline.sources import open_source
from vit_jax.input_pipeline.transforms import Decode


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


# --- every format --------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8))
GREY16 = RNG.integers(0, 65536, (7, 5), dtype=np.uint16)


def in_mode(mode: str) -> Image.Image:
    """A small picture of noise in one of Pillow's modes."""
    if mode == "I;16":
        return Image.fromarray(GREY16)
    if mode in ("I", "F"):
        return Image.fromarray(GREY16.astype({"I": np.int32, "F": np.float32}[mode]))
    if mode == "LAB":
        return Image.frombytes("LAB", RGB.size, RGB.tobytes())
    return RGB.convert("P").convert(mode) if mode == "PA" else RGB.convert(mode)


# Format -> the modes in which Pillow writes it, and so the colours and depths of its files.
WRITTEN = {
    "png": "1 L LA P RGB RGBA I;16",
    "jpeg": "L RGB CMYK",
    "webp": "RGB RGBA",
    "gif": "L P RGB",
    "bmp": "1 L P RGB",
    "tiff": "1 L LA P PA RGB RGBA CMYK YCbCr LAB I;16 I F",
    "ppm": "1 L RGB I;16 F",
    "tga": "L LA P RGB RGBA",
    "jpeg2000": "L RGB RGBA I;16",
    "avif": "RGB RGBA",
    "ico": "RGB RGBA",
    "pcx": "L P RGB",
    "sgi": "L RGB RGBA",
    "qoi": "RGB RGBA",
    "dds": "L RGB RGBA",
    "dib": "RGB",
    "msp": "1",
    "xbm": "1",
}


@pytest.mark.parametrize(
    ("file_format", "mode"), [(f, mode) for f, modes in WRITTEN.items() for mode in modes.split()]
)
def test_every_format_and_mode_is_pillows_rgb(file_format, mode):
    encoded = encode(in_mode(mode), file_format)
    if mode in ("I", "F"):
        with pytest.raises(DamagedImage, match="values, of which none is known to be white"):
            decode_image(encoded)
        return
    if mode == "I;16":
        expected = np.repeat((GREY16 >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    else:
        expected = pillow(encoded)
    np.testing.assert_array_equal(decode_image(encoded), expected)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_a_channel_keep_the_upper_eight(suffix, channels):
    image = RNG.integers(0, 65536, (7, 5, channels), dtype=np.uint16)
    encoded = cv2.imencode(suffix, image)[1].tobytes()
    np.testing.assert_array_equal(decode_image(encoded), (image >> 8)[..., 2::-1])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palettes_of_few_bits(bits):
    image = RGB.quantize(2**bits)
    encoded = encode(image, "png", bits=bits)
    np.testing.assert_array_equal(decode_image(encoded), np.asarray(image.convert("RGB")))


def test_a_transparent_palette_warns_of_nothing(recwarn):
    encoded = encode(RGB.quantize(4), "png", transparency=b"\0\x80\xff\xff")
    np.testing.assert_array_equal(decode_image(encoded), np.asarray(RGB.quantize(4).convert("RGB")))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("jpeg", {}),
        ("png", {}),
        ("webp", {"lossless": True}),
        ("avif", {}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("tiff", {"compression": "jpeg"}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_once(file_format, options, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(RGB.convert(mode), file_format, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    found = decode_image(encoded)
    np.testing.assert_array_equal(found, np.asarray(upright))
    assert found.shape == ((7, 5, 3) if orientation < 5 else (5, 7, 3))


def test_a_deep_tiff_is_turned_once():
    encoded = encode(Image.fromarray(GREY16), "tiff", tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(decode_image(encoded)[..., 0], np.rot90(GREY16 >> 8, -1))


def tiff(values: np.ndarray, bits: int, data: bytes, *, zero_is_black: bool = True) -> bytes:
    """An uncompressed grey TIFF of one strip, for what Pillow does not write."""
    (height, width), short, long = values.shape, 3, 4
    tags = {
        **{256: (short, width), 257: (short, height), 258: (short, bits), 259: (short, 1)},
        **{262: (short, int(zero_is_black)), 273: (long, 8), 277: (short, 1)},
        **{278: (short, height), 279: (long, len(data))},
    }
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in tags.items()
    )
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a_tiff_of_twelve_bits():
    values = np.array([[0, 4095, 2048, 100]])
    bits = "".join(f"{value:012b}" for value in values[0])
    encoded = tiff(values, 12, int(bits, 2).to_bytes(6, "big"))
    np.testing.assert_array_equal(decode_image(encoded)[..., 0], values >> 4)


def test_a_deep_tiff_whose_zero_is_white_is_refused():
    values = np.array([[0, 65535]], "<u2")
    with pytest.raises(DamagedImage, match="whose 0 is white"):
        decode_image(tiff(values, 16, values.tobytes(), zero_is_black=False))


def test_of_a_moving_image_the_first_frame_counts():
    frames = [RGB, RGB.rotate(180), RGB.rotate(90)]
    for file_format in ("gif", "webp", "png", "tiff"):
        options = {"lossless": True} if file_format == "webp" else {}
        encoded = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(
            decode_image(encoded), pillow(encode(frames[0], file_format, **options))
        )


NOISE = Image.fromarray(RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize("file_format", [f for f in WRITTEN if f != "ico"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_part_of_any_file_is_refused(file_format, share):
    image = NOISE if "RGB" in WRITTEN[file_format] else NOISE.convert("1")
    encoded = encode(image, file_format)
    with pytest.raises(DamagedImage, match="cannot decode a/picture: ") as error:
        decode_image(encoded[: int(share * len(encoded))], "a/picture")
    assert "object at" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot decode a/b.png: it is an empty file"),
        (b"\0" * 100, "in no format that Pillow reads"),
        (b"<!DOCTYPE html>", "in no format that Pillow reads"),
        (b"version https://git-lfs.github.com/spec/v1", "in no format that Pillow reads"),
    ],
)
def test_what_is_no_image_is_said_in_plain_words(content, message):
    with pytest.raises(DamagedImage, match=message):
        decode_image(content, "a/b.png")


def test_the_same_image_is_the_same_in_every_source(tmp_path):
    encoded = encode(RGB, "tiff", tiffinfo={0x0112: 6})
    (tmp_path / "folder" / "test" / "a").mkdir(parents=True)
    file = tmp_path / "folder" / "test" / "a" / "1.tif"
    file.write_bytes(encoded)
    (tmp_path / "table.csv").write_text(f"{file},a\n")
    np.savez(tmp_path / "arrays.npz", images=decode_image(encoded)[None], labels=["a"])
    for dataset in ("folder", "table.csv", "arrays.npz"):
        record = open_source(str(tmp_path / dataset))[0]
        np.testing.assert_array_equal(Decode()(record)["image"], decode_image(encoded))

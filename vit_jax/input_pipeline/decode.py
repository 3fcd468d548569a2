"""Decodes the bytes of an image file to pixels: plain JPEGs with OpenCV, all others with Pillow.

Both libraries decode JPEG with libjpeg-turbo to the same pixels, and OpenCV is faster by half.
OpenCV is used only for files that it decodes exactly as Pillow does: complete JPEG files of 8-bit
YCbCr or RGB.
"""

import io
from typing import Any

import numpy as np

from vit_jax.errors import UserError

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright.

# EXIF orientation -> the function that turns the stored image upright; 1 needs no turn.
_UPRIGHT = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}

_EXIF = b"Exif\x00\x00"
_XMP_ORIENTATION = b"tiff:Orientation"  # Pillow uses this XMP field if EXIF has no orientation.
_APP1, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, 0xDA, b"\xff\xd9"
# Start-of-frame markers of the Huffman-coded kinds of JPEG: baseline, extended and progressive.
_FRAMES = (0xC0, 0xC1, 0xC2)


class DamagedImage(UserError):
    """The bytes that were to be decoded are no image, or only a part of an image."""


def decode_image(encoded: bytes, name: str = "image") -> np.ndarray:
    """Decodes any still image that Pillow reads.

    The image is turned upright by its EXIF orientation. Grey, palette and CMYK images become RGB,
    and an alpha channel is dropped. 16-bit channels keep their high byte, as in the decoder of the
    original code.

    Args:
      encoded: All bytes of the file.
      name: Name of the image in error messages, best the path of its file.

    Returns:
      uint8 [height, width, 3].

    Raises:
      DamagedImage: if the bytes are no image, or only a part of an image.
    """
    try:
        image = _decode_plain_jpeg(encoded)
        return _decode_any(encoded) if image is None else image
    except Exception as error:  # Pillow's decoders raise a dozen types, SyntaxError among them.
        raise DamagedImage(f"cannot decode {name}: {error or type(error).__name__}") from error


def _decode_any(encoded: bytes) -> np.ndarray:
    from PIL import Image

    image = Image.open(io.BytesIO(encoded))
    orientation = image.getexif().get(_ORIENTATION, 1)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    # `convert` copies an image that is RGB already, so it is called for other modes only.
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return _turned(pixels, orientation)


def _eight_bits(image: Any) -> Any:
    """The high byte of a 16-bit grey image; Pillow's own conversion would clip values at 255."""
    from PIL import Image

    high = np.asarray(image).astype(np.float64) // 256
    return Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))


def _turned(image: np.ndarray, orientation: Any) -> np.ndarray:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else np.ascontiguousarray(turn(image))


def _decode_plain_jpeg(encoded: bytes) -> np.ndarray | None:
    """The pixels of a plain JPEG; None for any other file, which is left to Pillow."""
    exif = _plain_jpeg_exif(encoded)
    if exif is None:
        return None

    import cv2

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if image is None or not exif:
        return image

    from PIL import Image

    tags = Image.Exif()
    tags.load(exif)
    return _turned(image, tags.get(_ORIENTATION, 1))


def _plain_jpeg_exif(encoded: bytes) -> bytes | None:
    """The EXIF segment of a complete plain JPEG (b'' if it has none); None for any other file.

    A file that was cut off has no end-of-image marker at its end, because the bytes of the marker
    cannot occur within coded data. libjpeg would fill the missing pixels with grey and only warn,
    whereas Pillow refuses such a file; so such a file is left to Pillow.
    """
    if not encoded.startswith(b"\xff\xd8\xff") or not encoded.endswith(_END_OF_IMAGE):
        return None
    exif, place, plain = b"", 2, False
    while place + 4 <= len(encoded) and encoded[place] == 0xFF:
        marker = encoded[place + 1]
        end = place + 2 + int.from_bytes(encoded[place + 2 : place + 4])
        content = encoded[place + 4 : end]
        if marker == _START_OF_SCAN:
            return exif if plain else None
        if marker in _FRAMES and len(content) > 5:
            # The segment holds the precision (1 byte), height (2), width (2) and number of
            # components (1). A JPEG of four components is CMYK, and is left to Pillow.
            plain = content[0] == 8 and content[5] == 3
        elif marker == _APP1 and not exif and content.startswith(_EXIF):
            exif = content
        elif marker == _APP1 and _XMP_ORIENTATION in content:
            return None
        place = end
    return None

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
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags.
_WHITE_IS_ZERO = 0  # A value of TIFF's photometric interpretation.

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
    """The bytes are no image, only a part of one, or an image of values on an unknown scale."""


def decode_image(encoded: bytes, name: str = "image") -> np.ndarray:
    """Decodes any still image that Pillow reads, and the first frame of one that moves.

    The image is turned upright by its orientation, as `PIL.ImageOps.exif_transpose` does it. Grey,
    palette, CMYK and YCbCr images become RGB by Pillow's `convert`, and an alpha channel is
    dropped: the colours below it are used. Channels of more than 8 bits keep their upper 8, as in
    the decoder of the original code.

    Args:
      encoded: All bytes of the file.
      name: Name of the image in error messages, best the path of its file.

    Returns:
      uint8 [height, width, 3].

    Raises:
      DamagedImage: if the bytes are no image, or only a part of an image, or if no rule says which
        of its values is white: floating-point, signed and 32-bit values are refused.
    """
    if not encoded:
        raise DamagedImage(f"cannot decode {name}: it is an empty file, of 0 bytes")
    try:
        image = _decode_plain_jpeg(encoded)
        return _decode_any(encoded) if image is None else image
    except Exception as error:  # Pillow's decoders raise a dozen types, SyntaxError among them.
        raise DamagedImage(f"cannot decode {name}: {error or type(error).__name__}") from error


def _decode_any(encoded: bytes) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise ValueError("no image, or a damaged one: in no format that Pillow reads") from None
    return pixels_of(image)


def pixels_of(image: Any) -> np.ndarray:
    """An open image of Pillow as `decode_image` gives it: uint8 [height, width, 3], upright.

    Raises:
      ValueError: if no rule says which of its values is white. Pillow's decoders raise other types
        for damage.
    """
    from PIL import Image, ImageOps

    bits = _bits(image)  # A TIFF file forgets its tags when it is loaded.
    image = ImageOps.exif_transpose(image)
    if bits is not None:
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    # Pillow would warn about a transparent palette, whose transparency is dropped here on purpose.
    image.info.pop("transparency", None)
    # `convert` copies an image that is RGB already, so it is called for other modes only.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _bits(image: Any) -> int | None:
    """The bits of a grey value that has more than 8; None for images that Pillow itself scales.

    Raises:
      ValueError: if nothing says which value is white.
    """
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts it at 8 bits only.
            raise ValueError("a TIFF of 16 bits whose 0 is white; save it with 0 as black")
        return tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if image.mode == "I" and image.format == "PPM":
        return 16  # Pillow scales whatever the file's largest value is to 65,535.
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise ValueError(
            f"{kind} values, of which none is known to be white: save it with 8 or 16 bits"
        )
    return None


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

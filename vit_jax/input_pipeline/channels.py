"""Images of any number of channels: colours, grey, and the bands of multispectral images."""

import io

import numpy as np

from vit_jax.input_pipeline.decode import DamagedImage, decode_image

_NPY = b"\x93NUMPY"
RGB, GREY = 3, 1


def decode_channels(encoded: bytes, channels: int, name: str = "image") -> np.ndarray:
    """Decodes an image of a given number of channels.

    Args:
      encoded: All bytes of a file that `decode_image` reads, or of a `.npy` of uint8
        [height, width] or [height, width, channels].
      channels: 3 reads every image as RGB, and 1 as grey by the weights of ITU-R 601 (Pillow's).
        For other numbers the image must have as many bands, or frames, such as a TIFF's pages.
      name: Name of the image in error messages, best the path of its file.

    Returns:
      uint8 [height, width, channels].

    Raises:
      DamagedImage: as `decode_image`, and for an image of another number of channels.
    """
    if encoded.startswith(_NPY):
        return with_channels(_array(encoded, name), channels, name)
    if channels in (RGB, GREY):
        return with_channels(decode_image(encoded, name), channels, name)
    return with_channels(_bands(encoded, name), channels, name)


def with_channels(pixels: np.ndarray, channels: int, name: str = "image") -> np.ndarray:
    """Pixels uint8 [height, width] or [height, width, n] with this number of channels.

    Grey becomes RGB by repeating, RGB becomes grey by its weights.

    Raises:
      DamagedImage: for other numbers, and for values of another type.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise DamagedImage(
            f"{name}: expected pixels of uint8 [height, width, {channels}], got {pixels.dtype} "
            f"{list(pixels.shape)}"
        )
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    found = pixels.shape[2]
    if found == channels:
        return pixels
    if (found, channels) == (GREY, RGB):
        return np.repeat(pixels, RGB, axis=2)
    if (found, channels) == (RGB, GREY):
        from PIL import Image

        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    raise DamagedImage(f"{name} has {found} channels, and the model takes images of {channels}")


def _array(encoded: bytes, name: str) -> np.ndarray:
    try:
        return np.load(io.BytesIO(encoded), allow_pickle=False)
    except Exception as error:  # NumPy raises many types for a header that is none.
        raise DamagedImage(f"cannot decode {name}: {error}") from error


def _bands(encoded: bytes, name: str) -> np.ndarray:
    """The channels as they are stored, of all frames one after the other."""
    from PIL import Image, ImageOps, ImageSequence

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            frames = [np.asarray(ImageOps.exif_transpose(f)) for f in ImageSequence.Iterator(image)]
        return np.concatenate([f[..., None] if f.ndim == 2 else f for f in frames], axis=2)
    except Exception as error:  # Pillow's decoders raise a dozen types, SyntaxError among them.
        raise DamagedImage(f"cannot decode {name}: {error or type(error).__name__}") from error

"""What the tests of the input pipeline share."""

import io

import numpy as np
from PIL import Image

TRAIN_PER_CLASS, TEST_PER_CLASS = 8, 5


def encode(image: np.ndarray | Image.Image, file_format: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, file_format, **options)
    return buffer.getvalue()

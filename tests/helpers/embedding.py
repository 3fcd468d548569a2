"""What the tests of embeddings share: a tiny model in a file, and images of noise."""

import json

import numpy as np
from PIL import Image
from recipes import random_params

from vit_jax.checkpoint import io, names, recorded
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import resolve, shrunk
from vit_jax.tree import arrays
from vit_jax.variables import collections

SIZE = 16


def write_model(path, name="ViT-Ti_16", scale=0.2, texts=None, **fields):
    """A file of a tiny model with random weights in every parameter.

    Args:
      path: Where to, a .npz.
      name: Which model is made tiny.
      scale: Of the weights: another gives another model.
      texts: How it wants its texts, if it takes any.
      fields: Of its constructor, in place of what it has; by default patches of 8 × 8.
    """
    config = resolve(name).config.to_dict()
    config = config | shrunk(config) | (fields or {"patches": {"size": (8, 8)}})
    classes = [] if texts else list("abc")
    size = (SIZE, SIZE)
    shapes = names.expected_shapes(config, image_size=size, num_classes=len(classes))
    flat = arrays(random_params(shapes, scale))
    told = recorded.described("tiny", config, Preprocess(SIZE), classes, size, texts)
    variables = collections(flat, names.statistics(config))
    io.save(path, variables, model=config, metadata={recorded.OURS: json.dumps(told)})
    return path


def write_images(folder, count, classes=("cat", "dog"), side=12):
    """Small images of noise in the folders of their classes, in turns; their paths in order."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (side, side + 4, 3), np.uint8)
        Image.fromarray(pixels).save(folder / classes[i % len(classes)] / f"{i:05}.png")
    return [str(path) for name in classes for path in sorted((folder / name).iterdir())]

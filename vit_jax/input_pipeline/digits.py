"""scikit-learn's handwritten digits as a TensorFlow Datasets dataset: real images, no download.

1,797 grey images of 8 × 8 pixels (E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998). Importing this module registers the TFDS name
`digits`.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vit_jax.errors import UserError

TEST_EXAMPLES = 360
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """The ten digits, with a stratified test split of 360 that no run ever trains on."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (TFDS reads a plain dict)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's 1,797 handwritten digits, 8 x 8 grey.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            # TFDS shuffles by hashing the keys. Without that, the order of the examples is the
            # order of the rows in scikit-learn's data.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # scikit-learn ships the images; nothing is downloaded.
        images, labels = _load()
        test = stratified(labels, TEST_EXAMPLES, _SPLIT_SEED)
        train = np.setdiff1d(np.arange(len(labels)), test)
        return {
            name: self._generate_examples(images[rows], labels[rows], rows)
            for name, rows in (("train", train), ("test", test))
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for image, label, row in zip(images, labels, rows, strict=True):
            # TFDS encodes arrays with TensorFlow, so it is given a file object of encoded bytes.
            yield int(row), {"image": io.BytesIO(_png(image)), "label": int(label)}


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Picks `count` rows at random, from every class in proportion to its size.

    The share of a class is rounded by the method of largest remainders.

    Args:
      labels: Integer class of each row, [N].
      count: Number of rows to pick in all.
      seed: Seed of the choice; the same seed picks the same rows on every machine.

    Returns:
      Sorted row numbers, int [count].
    """
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    quota = np.floor(exact).astype(int)
    odd = np.argsort(quota - exact, kind="stable")[: count - quota.sum()]
    quota[odd] += 1
    rng = np.random.Generator(np.random.PCG64(seed))
    picked = [
        rng.permutation(np.flatnonzero(labels == label))[:n]
        for label, n in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(picked))


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [1797, 8, 8], in which 0 is paper and 255 is ink, and labels int [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the dataset 'digits' ships with scikit-learn, which is not installed; "
            'run: pip install "vit-jax[demo]"'
        ) from error
    digits: Any = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()

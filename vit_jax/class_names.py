"""What the outputs of the published ImageNet classifiers mean.

Both lists are WordNet synsets in the models' order, which is that of their WordNet ids. The files
in `vit_jax/data` are written by `tools/make_class_names.py`.
"""

import functools
import gzip
from importlib import resources

_FILES = {
    1000: "imagenet1k.txt.gz",
    # The Google models' list: fall 2011's 21,841 synsets and two more.
    21_843: "imagenet21k.txt.gz",
}


def class_names(num_classes: int) -> list[str] | None:
    """Names such as `tench, Tinca tinca`, in the order of a classifier's outputs.

    Args:
      num_classes: 1000 for ImageNet-1k, 21843 for ImageNet-21k; no other size is known.

    Returns:
      One name an output, not always distinct (two classes of ImageNet-1k are `crane`); None if
      classifiers of this size are not ImageNet's.
    """
    synsets = _synsets(num_classes)
    return None if synsets is None else list(synsets.values())


def wordnet_ids(num_classes: int) -> list[str] | None:
    """WordNet ids such as `n01440764`, in the same order; None for another size."""
    synsets = _synsets(num_classes)
    return None if synsets is None else list(synsets)


@functools.cache
def _synsets(num_classes: int) -> dict[str, str] | None:
    """WordNet id -> lemmas, in the models' order."""
    if num_classes not in _FILES:
        return None
    data = resources.files("vit_jax").joinpath("data", _FILES[num_classes]).read_bytes()
    return dict(line.split("\t") for line in gzip.decompress(data).decode().splitlines())

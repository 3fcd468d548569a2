"""Zero-shot classification: the classes of a model of two towers are texts (LiT, CLIP).

A class is written into several prompts, the unit vectors of these texts are averaged, and an image
belongs to the class whose average points most in its direction (Radford et al. 2021,
arXiv:2103.00020, section 3.1.4; Zhai et al. 2022, arXiv:2111.07991).
"""

import dataclasses
import string
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from vit_jax.errors import UserError, some

if TYPE_CHECKING:
    import numpy as np

    from vit_jax.input_pipeline.records import Source

PLACE = "{}"  # where the name of a class goes in a prompt
EPS = 1e-8  # beside a norm


@dataclasses.dataclass(frozen=True)
class Averaging:
    """What a published evaluation does with the texts of a class.

    Attributes:
      prompts: The name of its prompts, a key of `PROMPTS`.
      canonical: Whether prompts and names lose punctuation and capitals, and of a name that lists
        several, as in `tench, Tinca tinca`, only the first is kept.
      unit: Whether the average is made a unit vector.
    """

    prompts: str
    canonical: bool
    unit: bool


# 'big_vision' is the evaluation that the figures of LiT's model cards are from; 'colab' that of the
# original's notebook; 'clip' that of CLIP's paper, section 3.1.4, and of OpenCLIP.
AVERAGES = {
    "big_vision": Averaging("clip_and_name", canonical=True, unit=True),
    "colab": Averaging("short", canonical=False, unit=False),
    "clip": Averaging("clip", canonical=False, unit=True),
}

_SHORT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    PLACE,
)


def _clip() -> tuple[str, ...]:
    data = resources.files("vit_jax").joinpath("data", "prompts_clip.txt")
    return tuple(data.read_text("utf-8").splitlines())


# 'clip' are the 80 of CLIP's evaluation on ImageNet, 'short' seven of them that its authors
# recommend where time is short, and the class alone.
PROMPTS: dict[str, Callable[[], tuple[str, ...]]] = {
    "clip_and_name": lambda: (*_clip(), PLACE),
    "clip": _clip,
    "short": lambda: _SHORT,
    "name": lambda: (PLACE,),
}


def canonical(text: str, keep: str = "") -> str:
    """Small letters without ASCII punctuation, parted by single spaces; `keep` is not removed."""
    parts = text.replace("_", " ").split(keep) if keep else [text.replace("_", " ")]
    bare = keep.join(part.translate(_NO_PUNCTUATION) for part in parts)
    return " ".join(bare.lower().split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def class_texts(names: Sequence[str], templates: Sequence[str], averaging: Averaging) -> list[str]:
    """Every class in every prompt, the texts of a class one after another.

    Raises:
      UserError: without classes or prompts, for a prompt without {}, and for a name of nothing.
    """
    if not names or not templates:
        raise UserError(
            f"zero-shot needs classes and prompts; got {len(names)} and {len(templates)}"
        )
    if lacking := [template for template in templates if PLACE not in template]:
        raise UserError(
            f"prompts need a {PLACE} where the name of the class goes; without it: {some(lacking)}"
        )
    if averaging.canonical:
        templates = [canonical(template, keep=PLACE) for template in templates]
    shown = [_first_alias(name) if averaging.canonical else name for name in names]
    if empty := [repr(name) for name, text in zip(names, shown, strict=True) if not text.strip()]:
        raise UserError(f"classes need names that are texts; got {some(empty)}")
    return [template.replace(PLACE, name) for name in shown for template in templates]


def _first_alias(name: str) -> str:
    return canonical(name, keep=",").split(",")[0].strip()


def class_embeddings(ztxt: "np.ndarray", num_classes: int, averaging: Averaging) -> "np.ndarray":
    """One vector a class, [C, D], from the unit vectors of `class_texts`, [C · prompts, D]."""
    import numpy as np

    mean = ztxt.reshape(num_classes, -1, ztxt.shape[-1]).mean(axis=1)
    if not averaging.unit:
        return mean
    return mean / (np.linalg.norm(mean, axis=1, keepdims=True) + EPS)


def own_names(source: "Source") -> list[str]:
    """What a dataset calls its classes; of ImageNet's, the words that its WordNet ids stand for."""
    from vit_jax.class_names import class_names, wordnet_ids
    from vit_jax.input_pipeline.classes import names_of

    names = names_of(source)
    for size in (1000, 21_843):
        words = dict(zip(wordnet_ids(size) or (), class_names(size) or (), strict=True))
        if words.keys() >= set(names):
            return [words[name] for name in names]
    return names

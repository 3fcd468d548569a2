"""Functions and classes with the names and signatures of the original's `preprocess` module.

They take texts, NumPy arrays and records of them; none of them needs TensorFlow.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import chosen
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.text import Text
from vit_jax.input_pipeline.geometry import resize_bilinear_exactly
from vit_jax.input_pipeline.transforms import preprocess_image
from vit_jax.text import Tokenizer
from vit_jax.text import get_tokenizer as tokenizer_of

__all__ = [
    "BertTokenizer",
    "PreprocessImages",
    "SentencepieceTokenizer",
    "get_pp",
    "get_tokenizer",
]


@dataclasses.dataclass(frozen=True)
class _Tokenizer:
    """A list of N texts to int32 [N, max_len].

    Attributes:
      vocab_path: Path or address of the vocabulary.
      max_len: Tokens of a text.

    Raises:
      UserError: for a vocabulary that cannot be had or used.
    """

    vocab_path: str
    max_len: int
    _tokenizer: Tokenizer = dataclasses.field(init=False, repr=False, compare=False)
    _kind = ""

    def __post_init__(self):
        text = Text(self._kind, str(self.vocab_path), self.max_len)
        object.__setattr__(self, "_tokenizer", tokenizer_of(text))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self._tokenizer(texts)


class BertTokenizer(_Tokenizer):
    """BERT's word pieces after [CLS], filled up with 0."""

    _kind = "bert"

    @property
    def cls_token(self) -> int:
        return self._tokenizer.pieces.first[0]


class SentencepieceTokenizer(_Tokenizer):
    """SentencePiece's pieces, filled up with `</s>`, which is always the last token."""

    _kind = "sentencepiece"

    @property
    def eos_token(self) -> int:
        return self._tokenizer.pieces.fill


_TOKENIZERS = {"bert": BertTokenizer, "sentencepiece": SentencepieceTokenizer}


def get_tokenizer(tokenizer_name: str) -> type[BertTokenizer] | type[SentencepieceTokenizer]:
    """The class of the tokenizer, 'bert' or 'sentencepiece'; UserError for another name."""
    return chosen(tokenizer_name, _TOKENIZERS, "tokenizer")


@dataclasses.dataclass(frozen=True)
class PreprocessImages:
    """Resizes images and maps their values to [-1, 1], as LiT does.

    Attributes:
      size: Height and width that the model gets, in pixels.
      crop: Whether the aspect ratio is kept and the middle cut out; otherwise images are squashed.
    """

    size: int
    crop: bool = False

    def __call__(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """N images, uint8 [height, width, 3] of any size, to float32 [N, size, size, 3]."""
        return np.stack([self.one(image) for image in images])

    def one(self, image: np.ndarray) -> np.ndarray:
        """One image, uint8 [height, width, 3], to float32 [size, size, 3].

        Raises:
          UserError: for an array of another type or shape.
        """
        image = self._middle(image) if self.crop and image.ndim == 3 else image
        return preprocess_image(image, Preprocess(self.size, truncate=True))

    def _middle(self, image: np.ndarray) -> np.ndarray:
        """The middle of the image whose shorter side was made `size`, in whole numbers."""
        ratio = np.float32(self.size) / np.float32(min(image.shape[:2]))
        height, width = (round(float(np.float32(side) * ratio)) for side in image.shape[:2])
        top, left = (height - self.size) // 2, (width - self.size) // 2
        window = resize_bilinear_exactly(image, height, width)[top:, left:]
        return window[: self.size, : self.size].astype(image.dtype)


def get_pp(
    *, tokenizer_name: str, vocab_path: str, max_len: int, size: int, crop: bool = False
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that prepares the features of an example, as a new dict.

    'image' is replaced by what `PreprocessImages` makes of it, and 'text', a string or its UTF-8,
    gets 'tokens', int32 [max_len], beside it. Where one of them is missing, it stays so.

    Raises:
      UserError: as `get_tokenizer` and its classes.
    """
    tokenizer = get_tokenizer(tokenizer_name)(vocab_path, max_len)
    images = PreprocessImages(size, crop)

    def pp(features: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(features)
        if "image" in found:
            found["image"] = images.one(found["image"])
        if "text" in found:
            text = found["text"]
            (found["tokens"],) = tokenizer([text.decode() if isinstance(text, bytes) else text])
        return found

    return pp

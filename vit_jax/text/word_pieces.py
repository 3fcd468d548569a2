"""BERT's lower-casing word pieces (Devlin et al. 2018, arXiv:1810.04805), in Unicode's full rules.

The rules are those of TensorFlow Text's tokenizer, which LiT was trained with, and which no other
package has: it folds compatibility characters (`ﬁ`, `①`), where others keep them, and a control
character parts words, where others delete it. Plain English is the same everywhere.
"""

import functools
import unicodedata

from vit_jax.errors import UserError, some
from vit_jax.text import vocabulary
from vit_jax.text.tokenizer import Pieces

_BEGIN, _UNKNOWN, _GOES_ON = "[CLS]", "[UNK]", "##"
_MAX_BYTES = 100  # of a word in UTF-8: a longer one is unknown

# Code points that show nothing, first and last of each range (Unicode: Default_Ignorable).
_IGNORABLE = [
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
]  # fmt: skip
_DROPPED = {code: None for first, last in _IGNORABLE for code in range(first, last + 1)}

# Ideographs of Chinese, each of which is a word.
_HAN = [
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
]  # fmt: skip


def bert(location: str) -> Pieces:
    """The word pieces of a vocabulary, text in UTF-8 with one piece a line; its number is the id.

    A text begins with [CLS], has no [SEP], and is filled up with the number 0. What the vocabulary
    does not know is its [UNK]; where it has none, the number behind its last line, as in the
    original.

    Raises:
      UserError: if the file cannot be had, or is no such vocabulary.
    """
    ids = _read(location)
    encode = functools.partial(_encode, ids)
    return Pieces(encode, size=len(ids), first=(ids[_BEGIN],))


def _read(location: str) -> dict[str, int]:
    try:
        lines = vocabulary.read(location).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{location} is no vocabulary of word pieces, which is text in UTF-8: "
            f"{error.reason} at byte {error.start}"
        ) from error
    # Not splitlines(): a line separator of Unicode may be a piece.
    pieces = [line.removesuffix("\r") for line in lines.removesuffix("\n").split("\n")]
    ids = {piece: i for i, piece in enumerate(pieces)}
    if _BEGIN not in ids:
        raise UserError(
            f"{location} is no vocabulary of word pieces: of its {len(pieces)} lines none is "
            f"{_BEGIN}"
        )
    if len(ids) < len(pieces):
        twice = [piece for i, piece in enumerate(pieces) if ids[piece] != i]
        raise UserError(f"the vocabulary {location} has lines twice: {some(twice)}")
    ids.setdefault(_UNKNOWN, len(ids))
    return ids


def _encode(ids: dict[str, int], text: str) -> list[int]:
    return [i for word in words(text) for i in _pieces(ids, word)]


def words(text: str) -> list[str]:
    """The words of a text in small letters without accents; punctuation marks are words."""
    parted = _folded(text).translate(_PARTED)
    return [word for word in parted.split(" ") if word]


def _folded(text: str) -> str:
    """Without case and compatibility forms (Unicode's NFKC_Casefold), accents apart (NFD)."""
    before = None
    while text != before:
        before = text
        text = unicodedata.normalize("NFKC", text.translate(_DROPPED)).casefold()
    return unicodedata.normalize("NFD", text)


class _Parted(dict[int, str]):
    """What becomes of each character in a text whose words are parted by spaces, by code point."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if category == "Mn":  # an accent
            self[code] = ""
        elif category in ("Cc", "Cf"):  # it controls, and shows nothing
            self[code] = " "
        elif _is_word(char, category):
            self[code] = f" {char} "
        else:
            self[code] = char
        return self[code]


_PARTED = _Parted()


def _is_word(char: str, category: str) -> bool:
    is_symbol = category[0] == "P" or (char.isascii() and category[0] == "S")
    return is_symbol or any(first <= ord(char) <= last for first, last in _HAN)


def _pieces(ids: dict[str, int], word: str) -> list[int]:
    """Ids of the longest piece that begins the word, and so on; of [UNK] where none fits."""
    unknown = [ids[_UNKNOWN]]
    if len(word.encode()) > _MAX_BYTES:
        return unknown
    found, start, prefix = [], 0, ""
    while start < len(word):
        end = len(word)
        while (piece := prefix + word[start:end]) not in ids:
            end -= 1
            if end == start:
                return unknown
        found.append(ids[piece])
        start, prefix = end, _GOES_ON
    return found

"""SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226), by the package of that name."""

import re
import string
from collections.abc import Callable, Iterable
from typing import Any

from vit_jax.errors import UserError
from vit_jax.text import vocabulary
from vit_jax.text.tokenizer import Pieces


def lit(location: str) -> Pieces:
    """The pieces of a SentencePiece model as LiT has them: `</s>` is at every place that is left.

    At least the last place is left, because the model reads the text off there.

    Raises:
      UserError: if the file cannot be had or is no such model, and without the package.
    """
    model = _read(location)
    end = _piece(location, model.eos_id(), "</s>")
    return Pieces(model.encode, size=model.vocab_size(), last=(end,), fill=end)


def siglip(location: str) -> Pieces:
    """The pieces of a SentencePiece model as SigLIP has them (Zhai et al. 2023, arXiv:2303.15343).

    Texts are in small letters, without ASCII's punctuation, and `</s>` ends them and fills them up.
    As in transformers, `</s>` and `<unk>` that a text holds are these pieces, and what follows them
    begins no word.

    Raises:
      UserError: as `lit`.
    """
    model = _read(location)
    end, unknown = _piece(location, model.eos_id(), "</s>"), model.unk_id()
    special = {model.id_to_piece(x): x for x in (end, unknown)}
    # Before a text stands a piece that no word joins, so that a text need not begin a word.
    before = model.id_to_piece(unknown)
    skipped = len(model.encode(before))

    def inner(text: str) -> list[int]:
        plain = text.lower().translate(_NO_PUNCTUATION)
        return model.encode(before + re.sub(r"\s+", " ", plain).strip())[skipped:]

    def encode(text: str) -> list[int]:
        text = _SPACE + text.replace(_SPACE, " ")
        parts = re.split(rf"\s*({_any_of(special)})\s*", text)
        if len(parts) > 1 and parts[0] == _SPACE:  # the text begins with a special piece
            parts = parts[1:]
        return _with_special(parts, special, inner)

    # The vocabulary of many languages has pieces at its end that stand for nothing.
    size = model.vocab_size()
    while size and model.id_to_piece(size - 1).startswith("<extra_id_"):
        size -= 1
    return Pieces(encode, size=size, last=(end,), fill=end)


def siglip2(location: str) -> Pieces:
    """The pieces of Gemma's SentencePiece model as SigLIP 2 has them (arXiv:2502.14786).

    Texts are in small letters; `<eos>` ends them, also where they are cut, and `<pad>` fills them
    up. As in transformers, pieces that control, such as `<eos>`, are themselves where a text holds
    them.

    Raises:
      UserError: as `lit`.
    """
    model = _read(location)
    end, fill = _piece(location, model.eos_id(), "<eos>"), _piece(location, model.pad_id(), "<pad>")
    kinds = (model.is_control, model.is_unknown)
    special = {
        model.id_to_piece(x): x for x in range(model.vocab_size()) if any(k(x) for k in kinds)
    }

    def inner(text: str) -> list[int]:
        # Letter by letter: a word's last sigma is like any other.
        return model.encode("".join(letter.lower() for letter in text))

    def encode(text: str) -> list[int]:
        return _with_special(re.split(f"({_any_of(special)})", text), special, inner)

    return Pieces(encode, size=model.vocab_size(), last=(end,), fill=fill)


_SPACE = "▁"  # how a space is spelled in pieces
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _any_of(pieces: Iterable[str]) -> str:
    return "|".join(map(re.escape, pieces))


def _with_special(
    parts: Iterable[str], special: dict[str, int], encode: Callable[[str], list[int]]
) -> list[int]:
    """Ids of a text that was parted at special pieces."""
    ids: list[int] = []
    for part in filter(None, parts):
        ids += [special[part]] if part in special else encode(part)
    return ids


def _piece(location: str, number: int, called: str) -> int:
    if number < 0:
        raise UserError(f"the SentencePiece model {location} has no {called}, which a text needs")
    return number


def _read(location: str) -> Any:
    """The model that the file holds."""
    content = vocabulary.read(location)
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            f"{location}: SentencePiece needs the package sentencepiece, which is not installed: "
            'pip install "vit-jax[text]"'
        ) from error
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise UserError(f"{location} is no SentencePiece model, or it is damaged") from error

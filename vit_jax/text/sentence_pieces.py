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
    model = _model(location, vocabulary.read(location))
    end = _piece(location, model.eos_id(), "</s>")
    return Pieces(model.encode, size=model.vocab_size(), last=(end,), fill=end)


def siglip(location: str) -> Pieces:
    """The pieces of a SentencePiece model as SigLIP has them (Zhai et al. 2023, arXiv:2303.15343).

    Texts are in small letters, without ASCII's punctuation, and `</s>` ends them and fills them up.
    As in transformers, `</s>` and `<unk>` that a text holds are these pieces, and what follows them
    begins no word. A `tokenizer.json` has the pieces alone, as open_clip keeps them: with it, what
    a text holds is no special piece, and `_` is a space.

    Raises:
      UserError: as `lit`.
    """
    content = vocabulary.read(location)
    if vocabulary.is_whole(content):
        return _whole_siglip(location, content)
    model = _model(location, content)
    end, unknown = _piece(location, model.eos_id(), "</s>"), model.unk_id()
    special = {model.id_to_piece(x): x for x in (end, unknown)}
    # Before a text stands a piece that no word joins, so that a text need not begin a word.
    before = model.id_to_piece(unknown)
    skipped = len(model.encode(before))

    def inner(text: str) -> list[int]:
        return model.encode(before + _canonical(text))[skipped:]

    def encode(text: str) -> list[int]:
        text = _SPACE + text.replace(_SPACE, " ")
        parts = re.split(rf"\s*({_any_of(special)})\s*", text)
        if len(parts) > 1 and parts[0] == _SPACE:  # the text begins with a special piece
            parts = parts[1:]
        return _with_special(parts, special, inner)

    size = _without_extra(model.vocab_size(), model.id_to_piece)
    return Pieces(encode, size=size, last=(end,), fill=end)


def siglip2(location: str) -> Pieces:
    """The pieces of Gemma's SentencePiece model as SigLIP 2 has them (arXiv:2502.14786).

    Texts are in small letters; `<eos>` ends them, also where they are cut, and `<pad>` fills them
    up. As in transformers, pieces that control, such as `<eos>`, are themselves where a text holds
    them. The file is Gemma's own, or a `tokenizer.json`, whether or not that says small letters.

    Raises:
      UserError: as `lit`.
    """
    content = vocabulary.read(location)
    if vocabulary.is_whole(content):
        return _whole_siglip2(location, content)
    model = _model(location, content)
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


def _whole_siglip(location: str, content: bytes) -> Pieces:
    model = vocabulary.whole(location, content)
    end = _token(location, model, "</s>")

    def encode(text: str) -> list[int]:
        return model.encode(_canonical(text.replace("_", " ")), add_special_tokens=False).ids

    size = _without_extra(model.get_vocab_size(), lambda x: model.id_to_token(x) or "")
    return Pieces(encode, size=size, last=(end,), fill=end)


def _whole_siglip2(location: str, content: bytes) -> Pieces:
    from tokenizers import normalizers

    model = vocabulary.whole(location, content)
    own = [] if model.normalizer is None else [model.normalizer]
    model.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    end, fill = (_token(location, model, piece) for piece in ("<eos>", "<pad>"))

    def encode(text: str) -> list[int]:
        return model.encode(text, add_special_tokens=False).ids

    return Pieces(encode, size=model.get_vocab_size(), last=(end,), fill=fill)


def _without_extra(size: int, piece: Callable[[int], str]) -> int:
    """The entries of a vocabulary, without those at its end that stand for nothing."""
    while size and piece(size - 1).startswith("<extra_id_"):
        size -= 1
    return size


def _token(location: str, model: Any, piece: str) -> int:
    found = model.token_to_id(piece)
    if found is None:
        raise UserError(f"the vocabulary {location} has no {piece}, which a text needs")
    return found


def _canonical(text: str) -> str:
    """In small letters, without ASCII's punctuation and more than one space."""
    return re.sub(r"\s+", " ", text.lower().translate(_NO_PUNCTUATION)).strip()


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


def _model(location: str, content: bytes) -> Any:
    """The model that the content of a file holds."""
    sentencepiece = vocabulary.package("sentencepiece", location, "SentencePiece needs")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise UserError(f"{location} is no SentencePiece model, or it is damaged") from error

"""Texts as numbers: the tokenizers of models with a text tower.

tokenize = get_tokenizer(Text("bert", "vocab.txt", length=16))
tokens = tokenize(["a photo of a cat"])  # int32 [1, 16]

Another kind is one more row of `TOKENIZERS`.
"""

from collections.abc import Callable

from vit_jax.errors import UserError, chosen
from vit_jax.families.text import Text
from vit_jax.text import byte_pairs, sentence_pieces, word_pieces
from vit_jax.text.tokenizer import Pieces, Tokenizer

__all__ = ["TOKENIZERS", "Tokenizer", "get_tokenizer"]

# The kind of a tokenizer -> what reads its vocabulary, a path or an address.
TOKENIZERS: dict[str, Callable[[str], Pieces]] = {
    "bert": word_pieces.bert,
    "clip": byte_pairs.clip,
    "sentencepiece": sentence_pieces.lit,
    "siglip": sentence_pieces.siglip,
    "siglip2": sentence_pieces.siglip2,
}


def get_tokenizer(text: Text) -> Tokenizer:
    """What makes numbers of texts for a model: a list of N texts to int32 [N, `text.length`].

    Raises:
      UserError: for an unknown kind, for no vocabulary or one that cannot be had or used, and for
        a length of less than two tokens.
    """
    read = chosen(text.kind, TOKENIZERS, "tokenizer")
    if not text.vocabulary:
        raise UserError(
            f"nothing tells where the vocabulary of the {text.kind!r} tokenizer lies: give its "
            "path or address, --vocabulary FILE"
        )
    return Tokenizer(read(text.vocabulary), text.length)

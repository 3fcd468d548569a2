"""Small vocabularies of SentencePiece, and tokenizers of transformers with them."""

import io
import pathlib
from typing import Any

import sentencepiece
import transformers
from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor

CORPUS = [
    "a photo of a cat",
    "two dogs, running!",
    "The quick brown fox jumps over the lazy dog.",
    "stop hello world " + " ".join("abcdefghijklmnopqrstuvwxyz0123456789.,!"),
]
# Of the trainer, for the files that the two of them have.
OPTIONS: dict[str, dict[str, Any]] = {
    "siglip": {"vocab_size": 60, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    # As Gemma's: pairs of bytes, texts as they are.
    "siglip2": {
        "vocab_size": 330, "model_type": "bpe", "byte_fallback": True,
        "normalization_rule_name": "identity", "add_dummy_prefix": False,
        "remove_extra_whitespaces": False, "user_defined_symbols": ["<mask>"],
        "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
        "pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>",
    },
}  # fmt: skip


def trained(path: pathlib.Path, **options: Any) -> str:
    """Writes a model of a few sentences; its path."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(CORPUS * 50), model_writer=model, minloglevel=2, **options
    )
    path.write_bytes(model.getvalue())
    return str(path)


def theirs(kind: str, path: str) -> Any:
    """transformers' tokenizer; SigLIP 2's with the settings of its published files."""
    if kind == "siglip":
        return transformers.SiglipTokenizer(path)
    vocabulary, *_, merges = SentencePieceExtractor(path).extract()
    return transformers.Siglip2Tokenizer(
        vocab=vocabulary, merges=merges, add_eos_token=True, padding_side="right"
    )

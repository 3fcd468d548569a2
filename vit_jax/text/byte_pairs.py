"""CLIP's byte pairs (Radford et al. 2021, arXiv:2103.00020, section 2.4), by `tokenizers`.

Texts are lower-cased and their white space is folded; words are made of pieces of UTF-8, which are
merged in the order of the vocabulary (Sennrich et al. 2016, arXiv:1508.07909). Ids are those of
transformers. OpenAI's own code mends broken characters and HTML before, which neither does here.
"""

import gzip
import itertools
import json
import os
from typing import TYPE_CHECKING, Any

from vit_jax.errors import UserError
from vit_jax.text import vocabulary
from vit_jax.text.tokenizer import Pieces

if TYPE_CHECKING:
    import tokenizers

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WHOLE, ENTRIES, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_SETTINGS = "tokenizer_config.json"
_END_OF_WORD = "</w>"
# OpenAI's file has more merges than its vocabulary of 49,408 has room for beside bytes and ends.
_MOST_MERGES = 48_894
# What a word is before it is parted: ends of texts, English endings, letters, a digit, signs.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_GZIP = b"\x1f\x8b"


def clip(location: str) -> Pieces:
    """The pieces of a vocabulary: `<|startoftext|>`, the text, `<|endoftext|>`, and a filling.

    Files of transformers are filled up with what the file beside them says, or else with the end;
    OpenAI's with the number 0. What stands after the end changes nothing in CLIP.

    Args:
      location: Path or address of `tokenizer.json`, of `vocab.json` beside `merges.txt`, of
        OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or a folder that holds one of the first two.

    Raises:
      UserError: if the file cannot be had or is no such vocabulary, and without the package.
    """
    location = _file(location)
    content = vocabulary.read(location)
    tokenizers = vocabulary.package("tokenizers", location, "CLIP's texts need")
    fill = None
    try:
        text = (gzip.decompress(content) if content.startswith(_GZIP) else content).decode()
        fields = json.loads(text) if text.lstrip().startswith("{") else None
        if fields is None:
            model, fill = _of_merges(*_openai(text)), 0
        elif "model" in fields:
            model = tokenizers.Tokenizer.from_str(text)
        else:
            merges = vocabulary.read(_beside(location, MERGES)).decode()
            model = _of_merges(fields, _pairs(merges))
    except UserError:
        raise
    except Exception as error:  # the package raises this class itself
        raise UserError(
            f"{location} is no vocabulary of CLIP, or it is damaged: {error}"
        ) from error
    return _pieces(location, model, fill)


def _pieces(location: str, model: "tokenizers.Tokenizer", fill: int | None) -> Pieces:
    begin, end = (model.token_to_id(token) for token in (BEGIN, END))
    if begin is None or end is None:
        raise UserError(f"the vocabulary {location} has no {BEGIN} or no {END}, as CLIP's has")
    model.no_truncation()
    model.no_padding()
    if fill is None:
        told = model.token_to_id(_padding(location))
        fill = end if told is None else told

    def encode(text: str) -> list[int]:
        return model.encode(text, add_special_tokens=False).ids

    return Pieces(encode, model.get_vocab_size(), first=(begin,), last=(end,), fill=fill)


def _padding(location: str) -> str:
    """The token that fills texts up, as transformers' settings beside a vocabulary say."""
    try:
        settings = json.loads(vocabulary.read(_beside(location, _SETTINGS)))
        token: Any = settings.get("pad_token", END)
    except (UserError, ValueError, AttributeError):  # there are none, or they are of no use
        return END
    return str(token.get("content", END) if isinstance(token, dict) else token)


def _file(location: str) -> str:
    """The file of a vocabulary in a folder, or the location itself."""
    if not os.path.isdir(location):
        return location
    for name in (WHOLE, ENTRIES):
        if os.path.exists(os.path.join(location, name)):
            return os.path.join(location, name)
    raise UserError(f"{location} holds no vocabulary of CLIP: {WHOLE}, or {ENTRIES} and {MERGES}")


def _beside(location: str, name: str) -> str:
    folder, slash, _ = location.replace(os.sep, "/").rpartition("/")
    return f"{folder}{slash}{name}"


def _pairs(text: str) -> list[tuple[str, str]]:
    """The merges of a file, without the line before them that says its version."""
    lines = [tuple(line.split()) for line in text.splitlines()[1:] if line.strip()]
    pairs = [(pair[0], pair[1]) for pair in lines if len(pair) == 2]
    if len(pairs) < len(lines):
        raise ValueError("a line of its merges is no pair")
    return pairs


def _openai(text: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary that OpenAI's merges make: bytes, bytes that end words, merges, and ends."""
    pairs = _pairs(text)[:_MOST_MERGES]
    letters = _letters()
    tokens = [*letters, *(x + _END_OF_WORD for x in letters)]
    tokens += ["".join(pair) for pair in pairs]
    return {token: i for i, token in enumerate([*tokens, BEGIN, END])}, pairs


def _letters() -> list[str]:
    """A letter that shows for every byte, those that show themselves first."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = sorted(set(range(256)) - set(shown))
    return [chr(byte) for byte in itertools.chain(shown, (256 + i for i in range(len(hidden))))]


def _of_merges(entries: dict[str, int], pairs: list[tuple[str, str]]) -> "tokenizers.Tokenizer":
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    found = Tokenizer(
        models.BPE(
            vocab=entries,
            merges=pairs,
            continuing_subword_prefix="",
            end_of_word_suffix=_END_OF_WORD,
            fuse_unk=False,
            unk_token=END,
        )
    )
    found.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    if {BEGIN, END} <= entries.keys():
        found.add_special_tokens([AddedToken(token, special=True) for token in (BEGIN, END)])
    return found

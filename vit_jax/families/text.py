"""How weights want their texts: which tokenizer makes numbers of them, and how many."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Self

from vit_jax.errors import UserError

# What transformers calls the vocabulary of a kind, in the order in which they are taken.
_FILES = {
    "clip": ("tokenizer.json", "vocab.json"),
    "siglip": ("spiece.model", "tokenizer.json"),
    "siglip2": ("tokenizer.model", "tokenizer.json"),
}
# The file beside them that says whose tokenizer it is, by the name of transformers' class.
TOKENIZER_SETTINGS = "tokenizer_config.json"
_KINDS = {
    "CLIPTokenizer": "clip",
    "SiglipTokenizer": "siglip",
    "T5Tokenizer": "siglip",  # whose pieces open_clip takes
    "Siglip2Tokenizer": "siglip2",
    "GemmaTokenizer": "siglip2",
}
# All of which a repository has some, if it has a tokenizer; what merges pairs lies beside a list.
TOKENIZER_FILES = (
    TOKENIZER_SETTINGS,
    "merges.txt",
    *sorted({name for names in _FILES.values() for name in names}),
)


def tokenizer_kind(settings: Mapping[str, Any]) -> str | None:
    """The kind of tokenizer that a `tokenizer_config.json` names; None for any other."""
    return _KINDS.get(str(settings.get("tokenizer_class")).removesuffix("Fast"))


def vocabulary_in(folder: pathlib.Path, kind: str) -> pathlib.Path | None:
    """The vocabulary that a folder has for a kind of tokenizer; None where it has none."""
    paths = (folder / name for name in _FILES.get(kind, ()))
    return next((path for path in paths if path.exists()), None)


@dataclasses.dataclass(frozen=True)
class Text:
    """The tokenizer of a published checkpoint with a text tower.

    Attributes:
      kind: Its rules, a key of `vit_jax.text.TOKENIZERS`, such as 'bert' or 'sentencepiece'.
      vocabulary: Where its vocabulary lies: a path or an address; '' where nobody says.
      length: Tokens of a text: longer ones are cut, shorter ones are filled up.
    """

    kind: str
    vocabulary: str = ""
    length: int = 16

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Raises UserError for fields that are not ours, or of another type."""
        known = {field.name: field.type for field in dataclasses.fields(cls)}
        good = fields.keys() <= known.keys() and "kind" in fields
        if not good or any(type(value) is not known[name] for name, value in fields.items()):
            raise UserError(f"expected how texts are prepared, {sorted(known)}; got {fields}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as `Text(**fields)` takes them, for metadata."""
        return dataclasses.asdict(self)

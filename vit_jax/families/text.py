"""How weights want their texts: which tokenizer makes numbers of them, and how many."""

import dataclasses
import pathlib
from typing import Any, Self

from vit_jax.errors import UserError

# What transformers calls the vocabulary of a kind, in the order in which they are taken.
_FILES = {
    "clip": ("tokenizer.json", "vocab.json"),
    "siglip": ("spiece.model",),
    "siglip2": ("tokenizer.model",),
}


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

    def lying_in(self, folder: pathlib.Path) -> Self | None:
        """The same with the vocabulary that a folder has for it; None where it has none."""
        for name in _FILES.get(self.kind, ()):
            if (folder / name).exists():
                return dataclasses.replace(self, vocabulary=str(folder / name))
        return None

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

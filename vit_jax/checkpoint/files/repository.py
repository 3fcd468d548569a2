"""What the files of a repository are called, and which of them are its weights.

A repository is a folder as transformers, timm or open_clip fill it, here or on the hub.
"""

import pathlib
from collections.abc import Collection

from vit_jax.checkpoint.files.shards import INDEX
from vit_jax.errors import UserError, some

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
OPEN_CLIP = "open_clip_config.json"
CARD = "README.md"  # the model card; its front matter tells the licence
WEIGHTS = "model.safetensors"
# Weights, safe formats first -> the file that says what model they are of.
DESCRIBED_BY = {
    WEIGHTS: CONFIG,
    "open_clip_model.safetensors": OPEN_CLIP,
    "pytorch_model.bin": CONFIG,
    "open_clip_pytorch_model.bin": OPEN_CLIP,
}
_SAFE, _TORCH = (".safetensors", ".npz"), (".bin", ".pth", ".pt")


def weights_among(files: Collection[str]) -> str | None:
    """The weights that their name, or that of the file beside them, tells; None without any.

    An index stands for the files that it names.
    """
    for name, described_by in DESCRIBED_BY.items():
        if described_by in files:
            for found in (name, f"{name}{INDEX}"):
                if found in files:
                    return found
    return None


def chosen(files: Collection[str], called: str) -> str:
    """The weights of a repository, whatever they are called.

    Args:
      files: Paths in the repository.
      called: What to call it in messages, an address.

    Raises:
      UserError: where there are none, or several, of which one must be named.
    """
    if (known := weights_among(files)) is not None:
        return known
    for suffixes in (_SAFE, _TORCH):
        found = sorted(f for f in files if pathlib.PurePosixPath(f).suffix in suffixes)
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{called} holds several files of weights: name one, such as {called}/{found[0]}. "
                f"It has {some(found, 12)}"
            )
    listing = some(sorted(files), 12) or "nothing"
    raise UserError(
        f"{called} holds no weights in a format that is read (.safetensors, .npz, .bin, .pth); it "
        f"has {listing}"
    )


def description_of(weights: str) -> str | None:
    """The file beside weights of this name that says what model they are of; None for no such."""
    return DESCRIBED_BY.get(weights.removesuffix(INDEX))

"""What is known of two towers in one space: what the family of each tower knows of it.

Its names have `img/` or `txt/` before them. `two_towers` gives the fields of a `Family`.
"""

from typing import Any

from vit_jax.families import registry
from vit_jax.families.family import Config, Edits, Shape, Shapes, Size
from vit_jax.families.text import Text

IMAGE, TEXT = "img", "txt"


def towers(config: Config) -> dict[str, dict[str, Any]]:
    """The config of each tower, by the name of its branch in the tree of parameters."""
    text = {"family": config["text_model"], **config["text"], "length": text_length(config)}
    channels = {"channels": config["channels"]} if "channels" in config else {}
    return {IMAGE: {**config["image"], **channels}, TEXT: text}


def heads(config: Config) -> dict[str, int]:
    """Outputs of the head of each tower, 0 for none."""
    dims = config["out_dim"]
    image, text = (dims, dims) if isinstance(dims, int) else dims
    return {IMAGE: image or 0, TEXT: text or 0}


def below(branch: str, shapes: Shapes) -> dict[str, Any]:
    """What lies below a branch, by the names that the tower itself has."""
    before = f"{branch}/"
    return {n.removeprefix(before): x for n, x in shapes.items() if n.startswith(before)}


def shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape] | None:
    """Those of both towers by our names; None where a tower has to be traced."""
    del num_classes
    found: dict[str, Shape] = {}
    for branch, tower in towers(config).items():
        of_tower = registry.get(tower).shapes
        own = of_tower and of_tower(tower, heads(config)[branch], image_size)
        if own is None:
            return None
        found |= {f"{branch}/{name}": shape for name, shape in own.items()}
    scalars = ("t",) if config.get("bias_init") is None else ("t", "b")
    return found | dict.fromkeys(scalars, (1,))


def _image_size(config: Config, shapes: Shapes) -> Size | None:
    image = towers(config)[IMAGE]
    return registry.get(image).image_size(image, below(IMAGE, shapes))


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    image = towers(config)[IMAGE]
    resize = registry.get(image).resize
    edits = {} if resize is None else resize(image, old, new, method)
    return {f"{IMAGE}/{name}": edit for name, edit in edits.items()}


def _stem(config: Config) -> tuple[str, ...]:
    image = towers(config)[IMAGE]
    return tuple(f"{IMAGE}/{name}" for name in registry.get(image).stem(image))


def text_length(config: Config) -> int:
    """Tokens of a text: what LiT's `pp` says, or else `length`, which is no constructor field."""
    own = config.get("length", Text.length)
    return (config.get("pp") or {}).get("max_len", own)


def _small(config: Config) -> dict[str, Any]:
    small = {branch: registry.shrunk(tower) for branch, tower in towers(config).items()}
    text = {name: small[TEXT][name] for name in small[TEXT].keys() - {"family", "length"}}
    dims = config["out_dim"]
    head = 32 if isinstance(dims, int) else tuple(dim and 32 for dim in dims)
    return {"image": small[IMAGE], "text": text, "out_dim": head}


def two_towers() -> dict[str, Any]:
    """The fields of a `Family` that follow from its towers."""
    return {
        "small": _small,
        "inputs": ("images", "tokens"),
        "parts": towers,
        "text_length": text_length,
        "image_size": _image_size,
        "resize": _resize,
        "stem": _stem,
        "shapes": shapes,
    }

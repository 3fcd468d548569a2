"""What files say of their model beside its tensors: preprocessing, class names, image size.

Three places are read: our own metadata (`vit_jax`), the arguments for timm (`timm`), and the JSON
files of a Hugging Face directory. What is malformed counts as absent: it is a hint, no weight.
"""

from typing import Any

from vit_jax.checkpoint import hf_dir
from vit_jax.checkpoint.resize import Grid
from vit_jax.checkpoint.source import Source, metadata_json
from vit_jax.errors import UserError
from vit_jax.models.preprocess import Preprocess

OURS, TIMM, HISTORY = "vit_jax", "timm", "vit_jax_conversion"


def preprocess(source: Source) -> Preprocess | None:
    """The recorded preprocessing, ours before the others'."""
    ours = _object(source, OURS).get("preprocess")
    if isinstance(ours, dict):
        try:
            return Preprocess.from_dict(ours)
        except (UserError, TypeError):
            return None
    return _from_timm(_timm(source)) or hf_dir.preprocess(source.described)


def class_names(source: Source) -> list[str] | None:
    names = _object(source, OURS).get("class_names")
    if isinstance(names, list):
        return [str(name) for name in names]
    return hf_dir.labels(source.described)


def model_name(source: Source) -> str | None:
    name = _object(source, OURS).get("name")
    return name if isinstance(name, str) else None


def image_size(source: Source) -> Grid | None:
    """(height, width) in pixels."""
    size = _object(source, OURS).get("image_size")
    if size is None and isinstance(chw := _timm(source).get("input_size"), list):
        size = chw[1:]
    if size is None:
        size = source.described.get("config", {}).get("image_size")
    if isinstance(size, int):
        return size, size
    if isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size):
        return size[0], size[1]
    return None


def history(source: Source) -> list[dict[str, Any]]:
    """The conversions that the file has been through, oldest first."""
    steps = metadata_json(source.archive, HISTORY)
    return [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else []


def _object(source: Source, key: str) -> dict[str, Any]:
    fields = metadata_json(source.archive, key)
    return fields if isinstance(fields, dict) else {}


def _timm(source: Source) -> dict[str, Any]:
    fields = _object(source, TIMM).get("pretrained_cfg")
    return fields if isinstance(fields, dict) else {}


def _from_timm(fields: dict[str, Any]) -> Preprocess | None:
    try:
        squash = fields["crop_mode"] == "squash"
        return Preprocess(
            size=fields["input_size"][1],
            crop=fields["crop_pct"],
            resize="squash" if squash else "shortest",
            method=fields["interpolation"],
            antialias=True,
            mean=tuple(fields["mean"]),
            std=tuple(fields["std"]),
        )
    except (KeyError, TypeError, IndexError):
        return None

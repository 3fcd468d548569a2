"""What files say of their model beside its tensors: preprocessing, class names, image size.

Three places are read: our own metadata (`vit_jax`), the arguments for timm (`timm`), and the JSON
files of a Hugging Face directory. What is malformed counts as absent: it is a hint, no weight.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

from vit_jax.checkpoint import hf_dir, infer
from vit_jax.checkpoint.files.npz import MAX_METADATA
from vit_jax.checkpoint.source import Source, metadata_json
from vit_jax.class_names import class_names as known_class_names
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import is_google
from vit_jax.families.resize import Grid

OURS, TIMM, HISTORY = "vit_jax", "timm", "vit_jax_conversion"


def preprocess(source: Source) -> Preprocess | None:
    """The recorded preprocessing, ours before the others'."""
    found = _from_timm(_timm(source)) or hf_dir.preprocess(source.described)
    if isinstance(ours := _object(source, OURS).get("preprocess"), dict):
        with contextlib.suppress(UserError, TypeError):
            found = Preprocess.from_dict(ours)
    return _sensible(found)


def _sensible(found: Preprocess | None) -> Preprocess | None:
    """What was found, unless a damaged or foreign file gave it values that cannot be."""
    if found is None:
        return None
    triples = (found.mean, found.std)
    good = (
        type(found.size) is int
        and 0 < found.size < 100_000
        and _is_number(found.crop)
        and 0 < found.crop <= 1
        and found.resize in ("squash", "shortest")
        and found.method in ("bilinear", "bicubic")
        and type(found.antialias) is bool
        and all(type(t) is tuple and len(t) == 3 and all(map(_is_number, t)) for t in triples)
    )
    return found if good else None


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def class_names(source: Source) -> list[str] | None:
    names = _object(source, OURS).get("class_names")
    if isinstance(names, list):
        return [str(name) for name in names]
    return hf_dir.labels(source.described)


def model_name(source: Source) -> str | None:
    name = _object(source, OURS).get("name")
    return name if isinstance(name, str) else None


def config(source: Source) -> dict[str, Any] | None:
    """Constructor fields as we recorded them, if they are of the sizes that the tensors have."""
    fields = _object(source, OURS).get("config")
    if not isinstance(fields, dict) or source.config is None:
        return None
    if not is_google(source.config):
        return source.config  # `open_source` took it from here, where it stands here
    same = ("representation_size",)
    with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
        if infer.sizes(fields) == infer.sizes(source.config) and all(
            fields.get(field) == source.config.get(field) for field in same
        ):
            return fields
    return None


def described(
    name: str, config: Mapping[str, Any], preprocess: Preprocess, class_names: list[str] | None
) -> dict[str, Any]:
    """A model in the words of our own metadata, for the functions above to read."""
    known = class_names is None or class_names == known_class_names(len(class_names))
    return {
        "name": name,
        "config": dict(config),
        "preprocess": preprocess.to_dict(),
        "class_names": None if known else class_names,
    }


def fitting_npz(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata without class names if an npz file cannot hold them: thousands of classes."""
    if len(json.dumps(dict(metadata))) <= MAX_METADATA:
        return dict(metadata)
    fields = json.loads(metadata[OURS]) | {"class_names": None}
    return {**metadata, OURS: json.dumps(fields)}


def image_size(source: Source) -> Grid | None:
    """(height, width) in pixels."""
    size = _object(source, OURS).get("image_size")
    if size is None and isinstance(chw := _timm(source).get("input_size"), list):
        size = chw[1:]
    if size is None:
        size = source.described.get("config", {}).get("image_size")
    if type(size) is int:
        size = [size, size]
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
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

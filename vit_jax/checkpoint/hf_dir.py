"""What lies beside the weights in a Hugging Face directory: config, labels, preprocessing."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.checkpoint.files.archive import reading
from vit_jax.errors import UserError
from vit_jax.families.family import Config, HuggingFace, Size
from vit_jax.families.preprocess import Preprocess

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = "model.safetensors"
_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
# transformers' other names for an activation.
_SAME = {"gelu_pytorch_tanh": ("gelu_new", "gelu_fast")}
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
_METHODS: dict[int, Any] = {number: name for name, number in _RESAMPLE.items()}


def weights(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a directory; UserError if there is none, or it is in parts."""
    for name in _WEIGHTS:
        if (folder / name).exists():
            return folder / name
        if (folder / f"{name}.index.json").exists():
            raise UserError(
                f"{str(folder)!r} holds its weights in parts, which are not read; join them"
            )
    raise UserError(f"{str(folder)!r} holds no weights ({' or '.join(_WEIGHTS)})")


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The JSON objects of a directory by name of file: CONFIG, and PREPROCESSOR if it is there.

    Raises UserError for a file that is not readable.
    """
    names = (CONFIG, PREPROCESSOR)
    return {name: _json(folder / name) for name in names if (folder / name).exists()}


def _json(path: pathlib.Path) -> dict[str, Any]:
    with reading(path, "JSON"):
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise UserError(f"{str(path)!r} holds no JSON object")
        return fields


def notes(config: Mapping[str, Any], build: HuggingFace) -> list[str]:
    """Where the model computes otherwise than ours, by the entries that its family is told by."""
    ours, found = build.ours, []
    for name, shipped in build.shipped.items():
        value = config.get(name, shipped)
        if value != ours[name] and value not in _SAME.get(str(ours[name]), ()):
            found.append(f"its {name} is {value!r}, ours is {ours[name]!r}")
    return found


def preprocess(fields: Mapping[str, Any] | None) -> Preprocess | None:
    """What a `preprocessor_config.json` says; None without one, or for a kind that is not ours."""
    if not fields:
        return None
    size = fields.get("size", 224)
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    try:
        crop = fields.get("crop_size") if fields.get("do_center_crop") else None
        edge = crop["height"] if isinstance(crop, dict) else crop
        share = fields.get("crop_pct")
        if edge is None and share and fields.get("do_resize", True):
            edge, size = size, size / share  # ConvNeXT's processor: an edge and its share
        return Preprocess(
            size=int(edge or size or 0),
            crop=edge / size if edge else 1.0,
            resize="shortest" if edge else "squash",
            method=_METHODS[fields.get("resample", 2)],
            antialias=True,
            mean=tuple(fields.get("image_mean", (0.5,) * 3)),
            std=tuple(fields.get("image_std", (0.5,) * 3)),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def labels(config: Mapping[str, Any]) -> list[str] | None:
    """Class names in the order of the logits; None if there are only numbers."""
    given = config.get("id2label")
    if not isinstance(given, dict):
        return None
    try:
        names = [str(given[str(i)]) for i in range(len(given))]
    except KeyError:
        return None
    return None if all(n == f"LABEL_{i}" for i, n in enumerate(names)) else names


def config_json(
    config: Config,
    build: HuggingFace,
    *,
    image_size: Size,
    num_classes: int,
    class_names: Sequence[str] | None,
    dtype: str,
) -> dict[str, Any]:
    """The `config.json` with which transformers builds the same function.

    Raises UserError for a model without a head where transformers has no such class.
    """
    with_head, without = build.architectures
    if not num_classes and without is None:
        raise UserError(f"Hugging Face has no {build.model_type} without a head")
    fields: dict[str, Any] = {
        "architectures": [with_head if num_classes else without],
        "model_type": build.model_type,
        **build.write(config, image_size),
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before transformers 5
    }
    if num_classes:
        names = class_names or [f"LABEL_{i}" for i in range(num_classes)]
        fields["id2label"] = {str(i): name for i, name in enumerate(names)}
        fields["label2id"] = {name: i for i, name in enumerate(names)}
    return fields


def preprocessor_json(wanted: Preprocess, image_size: Size) -> dict[str, Any]:
    """The `preprocessor_config.json` of a `ViTImageProcessor`, which every family can use."""
    rows, columns = image_size
    fields: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": rows, "width": columns},
        "resample": _RESAMPLE[wanted.method],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(wanted.mean),
        "image_std": list(wanted.std),
    }
    if wanted.resize == "shortest":
        fields |= {
            "size": {"shortest_edge": int(min(image_size) / wanted.crop)},
            "do_center_crop": True,
            "crop_size": {"height": rows, "width": columns},
        }
    return fields

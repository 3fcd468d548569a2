"""What lies beside the weights in a Hugging Face directory: config, labels, preprocessing."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.checkpoint.files.archive import reading
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.resize import Grid

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = "model.safetensors"
_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
_GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
EPS = 1e-6
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


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
    """{'config': …, 'preprocessor': … or None}.

    Raises UserError if the directory is not a Vision Transformer's of Hugging Face.
    """
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{str(folder)!r} is a directory without {CONFIG}; expected a checkpoint file or a "
            "Hugging Face directory"
        )
    config = _json(folder / CONFIG)
    if config.get("model_type") != "vit":
        raise UserError(
            f"{str(folder)!r} holds a {config.get('model_type')!r} model; only 'vit' is read"
        )
    if "num_attention_heads" not in config:
        raise UserError(f"{str(folder / CONFIG)!r} has no num_attention_heads")
    path = folder / PREPROCESSOR
    return {"config": config, "preprocessor": _json(path) if path.exists() else None}


def _json(path: pathlib.Path) -> dict[str, Any]:
    with reading(path, "JSON"):
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise UserError(f"{str(path)!r} holds no JSON object")
        return fields


def notes(described: Mapping[str, Any]) -> list[str]:
    """Where the model computes otherwise than ours, whose GELU is the tanh form, eps 1e-6."""
    if not described:
        return []
    config, found = described["config"], []
    if (act := config.get("hidden_act", "gelu")) not in _GELU_TANH:
        found.append(f"its activation is {act!r}, ours is GELU's tanh form")
    if (eps := config.get("layer_norm_eps", 1e-12)) != EPS:
        found.append(f"its LayerNorm has eps {eps}, ours {EPS}")
    return found


def preprocess(described: Mapping[str, Any]) -> Preprocess | None:
    """The recorded preprocessing; None if there is none, or it is of a kind that is not ours."""
    fields = described.get("preprocessor")
    if not fields:
        return None
    size = fields.get("size", 224)
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    try:
        crop = fields.get("crop_size") if fields.get("do_center_crop") else None
        edge = crop["height"] if isinstance(crop, dict) else crop
        return Preprocess(
            size=int(edge or size or 0),
            crop=edge / size if edge else 1.0,
            resize="shortest" if edge else "squash",
            method="bicubic" if fields.get("resample", 2) == _RESAMPLE["bicubic"] else "bilinear",
            antialias=True,
            mean=tuple(fields.get("image_mean", (0.5,) * 3)),
            std=tuple(fields.get("image_std", (0.5,) * 3)),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def labels(described: Mapping[str, Any]) -> list[str] | None:
    """Class names in the order of the logits; None if there are only numbers."""
    given = described.get("config", {}).get("id2label")
    if not isinstance(given, dict):
        return None
    try:
        names = [str(given[str(i)]) for i in range(len(given))]
    except KeyError:
        return None
    return None if all(n == f"LABEL_{i}" for i, n in enumerate(names)) else names


def config_json(
    config: Mapping[str, Any],
    *,
    image_size: Grid,
    num_classes: int,
    class_names: Sequence[str] | None,
    dtype: str,
) -> dict[str, Any]:
    """The `config.json` with which transformers builds the same function."""
    transformer = config["transformer"]
    rows, columns = image_size
    fields: dict[str, Any] = {
        "architectures": ["ViTForImageClassification" if num_classes else "ViTModel"],
        "model_type": "vit",
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": transformer["num_layers"],
        "num_attention_heads": transformer["num_heads"],
        "intermediate_size": transformer["mlp_dim"],
        "hidden_act": _GELU_TANH[0],
        "layer_norm_eps": EPS,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_channels": 3,
        "image_size": rows if rows == columns else [rows, columns],
        "patch_size": config["patches"]["size"][0],
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before transformers 5
    }
    if config.get("representation_size") is not None:
        fields |= {"pooler_output_size": config["representation_size"], "pooler_act": "tanh"}
    if num_classes:
        names = class_names or [f"LABEL_{i}" for i in range(num_classes)]
        fields["id2label"] = {str(i): name for i, name in enumerate(names)}
        fields["label2id"] = {name: i for i, name in enumerate(names)}
    return fields


def preprocessor_json(wanted: Preprocess, image_size: Grid) -> dict[str, Any]:
    """The `preprocessor_config.json` of a `ViTImageProcessor`."""
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

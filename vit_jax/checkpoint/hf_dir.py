"""What lies beside the weights in a Hugging Face directory: config, labels, preprocessing, card."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.checkpoint.files import hub
from vit_jax.checkpoint.files.archive import reading
from vit_jax.checkpoint.files.repository import (
    CARD,
    CONFIG,
    DESCRIBED_BY,
    OPEN_CLIP,
    PREPROCESSOR,
    WEIGHTS,
    description_of,
    weights_among,
)
from vit_jax.errors import UserError
from vit_jax.families.family import Config, HuggingFace, Size, channels
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import get
from vit_jax.families.text import TOKENIZER_SETTINGS

_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)
_ENTRY = re.compile(r"^([\w-]+):(?:[ \t]*\r?\n[ \t]*-)?[ \t]+(\S[^\r\n]*)", re.MULTILINE)
# transformers' other names for an activation.
_SAME = {"gelu_pytorch_tanh": ("gelu_new", "gelu_fast"), "gelu": ("gelu_python",)}
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
_METHODS: dict[Any, Any] = {number: name for name, number in _RESAMPLE.items()}
# What a processor does where its file does not say how it interpolates, in every version.
_RESAMPLE_OF = {"ViT": 2, "DeiT": 3, "Levit": 3, "Siglip": 3}
# What no configuration of a library's preprocessing can say, for that library's name.
NOT_ANTIALIASED = (
    "{} antialiases images that it shrinks, where the model was evaluated without: probabilities "
    "differ, and some images get another class"
)
_UNCROPPED = 384  # pixels from which ConvNeXT's processor squashes, and crops nothing


def is_repository(folder: pathlib.Path) -> bool:
    """Whether a folder says of weights in it what model they are of."""
    return any((folder / name).exists() for name in (CONFIG, OPEN_CLIP))


def expected(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a directory, or the index of several, whether or not it is there."""
    return folder / (weights_among([file.name for file in folder.iterdir()]) or WEIGHTS)


def weights(folder: pathlib.Path) -> pathlib.Path:
    """As `expected`; UserError if there is none."""
    if not (found := expected(folder)).exists():
        raise UserError(f"{str(folder)!r} holds no weights ({' or '.join(DESCRIBED_BY)})")
    return found


def is_weights(path: pathlib.Path) -> bool:
    """Whether a file is called as the weights of such a directory are, and one is around it."""
    description = description_of(path.name)
    return description is not None and (path.parent / description).exists()


def read(path: pathlib.Path) -> dict[str, Any]:
    """What lies beside weights of this path, by name of file; {} if their name is of no directory.

    JSON objects: CONFIG and PREPROCESSOR, or OPEN_CLIP; TOKENIZER_SETTINGS; and of CARD what
    its front matter says.

    Raises UserError for a file that is not readable.
    """
    description = description_of(path.name)
    names = [] if description is None else [description]
    names += [PREPROCESSOR] if description == CONFIG else []
    names += [] if description is None else [TOKENIZER_SETTINGS]
    beside = {name: path.parent / name for name in names if (path.parent / name).exists()}
    found = {name: _json(file) for name, file in beside.items()}
    if (found or hub.origin(path)) and (path.parent / CARD).exists():
        found[CARD] = _front_matter(path.parent / CARD)
    return found


def _front_matter(card: pathlib.Path) -> dict[str, str]:
    """The one-line entries of the YAML before a model card; the first of those that are lists."""
    with reading(card, "text"):
        text = card.read_text(encoding="utf-8", errors="replace")
    match = _FRONT_MATTER.match(text)
    entries = _ENTRY.findall(match[1]) if match else []
    return {name: value.strip().strip("'\"") for name, value in entries}


def licence(card: Mapping[str, str]) -> str:
    """The licence that a card tells, or ''; one without an identifier is called by its name."""
    found = card.get("license", "")
    return card.get("license_name", found) if found == "other" else found


def _json(path: pathlib.Path) -> dict[str, Any]:
    with reading(path, "JSON"):
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise UserError(f"{str(path)!r} holds no JSON object")
        return fields


def notes(config: Mapping[str, Any], build: HuggingFace) -> list[str]:
    """Where the model computes otherwise than ours, by the entries that its family is told by."""
    differ = _differing(config, build)
    return [f"its {name} is {value!r}, ours is {build.ours[name]!r}" for name, value in differ]


def is_shipped(config: Mapping[str, Any], build: HuggingFace) -> bool:
    """Whether what computes otherwise than ours is as transformers ships published weights.

    These weights were made for our model, and transformers computes it nearly.
    """
    return all(_same(value, build.shipped[name]) for name, value in _differing(config, build))


def _differing(config: Mapping[str, Any], build: HuggingFace) -> list[tuple[str, Any]]:
    values = ((name, config.get(name, shipped)) for name, shipped in build.shipped.items())
    return [(name, value) for name, value in values if not _same(value, build.ours[name])]


def _same(value: Any, wanted: Any) -> bool:
    return value == wanted or value in _SAME.get(str(wanted), ())


def require_ours(
    config: Mapping[str, Any], build: HuggingFace, ours: Config, image_size: Size
) -> None:
    """Raises UserError for entries that make a model which no fields of ours make.

    Args:
      config: A `config.json`.
      build: How its family is built.
      ours: What was read from it; written again, it must say the same.
      image_size: (height, width) in pixels.
    """
    _require_same(config, build, build.write(ours, image_size))


def _require_same(
    config: Mapping[str, Any], build: HuggingFace, ours: Mapping[str, Any], before: str = ""
) -> None:
    for name, wanted in ours.items():
        # The size is the tensors', and what is dropped in training changes no function.
        if name in build.ours or name == "image_size" or "drop" in name:
            continue
        value = config.get(name, wanted)
        if isinstance(wanted, Mapping):  # the entries of a part
            _require_same(value or {}, build, wanted, f"{before}{name}.")
            continue
        value = list(value) if isinstance(value, tuple) else value
        if value not in (wanted, [wanted, wanted]):
            raise UserError(
                f"{CONFIG} describes a {build.model_type} whose {before}{name} is {value!r}; the "
                f"model here is one with {wanted!r}"
            )


def preprocess(fields: Mapping[str, Any]) -> Preprocess:
    """What a `preprocessor_config.json` says.

    Raises:
      UserError: that says why, for one that does what `Preprocess` cannot say.
    """
    try:
        return _preprocess(fields)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"its {PREPROCESSOR} is not used: {error or 'damaged'}") from None


def _preprocess(fields: Mapping[str, Any]) -> Preprocess:
    kind = _kind(fields)
    if not all(fields.get(f"do_{what}", True) for what in ("resize", "rescale", "normalize")):
        raise ValueError("it leaves out resizing, rescaling or normalising")
    if abs(fields.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ValueError(f"its rescale_factor is {fields['rescale_factor']!r}, not 1 / 255")
    resample = fields.get("resample", _RESAMPLE_OF.get(kind))
    if resample not in _METHODS:
        raise ValueError(f"its resample is {resample!r}, neither bilinear (2) nor bicubic (3)")
    resized, shortest = _edge(fields.get("size", 224), keeps=kind in ("ConvNext", "Levit"))
    if kind == "ConvNext":
        size, shortest = resized, resized < _UNCROPPED
        share = fields.get("crop_pct") or 224 / 256
        resized = size / share if shortest else size
    else:
        size = resized
        if kind == "Levit" and shortest:
            resized = int(256 / 224 * resized)
        if fields.get("do_center_crop", kind in ("DeiT", "Levit", "CLIP")):
            size, _ = _edge(fields.get("crop_size", 224))
        elif shortest:
            raise ValueError("it keeps the aspect ratio and crops nothing")
    return Preprocess(
        size=int(size),
        crop=size / resized,
        resize="shortest" if shortest else "squash",
        method=_METHODS[resample],
        antialias=True,
        mean=tuple(fields.get("image_mean", (0.5,) * 3)),
        std=tuple(fields.get("image_std", (0.5,) * 3)),
    )


def _kind(fields: Mapping[str, Any]) -> str:
    """The kind of an image processor, without what versions and backends add to its name."""
    name = str(fields.get("image_processor_type") or fields.get("feature_extractor_type") or "ViT")
    for end in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(end)
    return name


def _edge(size: Any, *, keeps: bool = False) -> tuple[int, bool]:
    """Pixels of a size, and whether they are the shorter side's; `keeps`: whether a number is."""
    if not isinstance(size, dict):
        return size, keeps
    if "shortest_edge" in size:
        return size["shortest_edge"], True
    return size["height"], False


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


def entries(config: Config, build: HuggingFace, image_size: Size) -> dict[str, Any]:
    """The entries of a `config.json` that say the model's sizes."""
    of_images = {"num_channels": channels(config)} if "images" in get(config).inputs else {}
    return {**build.write(config, image_size), **of_images}


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
    if (with_head if num_classes else without) is None:
        what = "with" if num_classes else "without"
        raise UserError(f"Hugging Face has no {build.model_type} {what} a head")
    fields: dict[str, Any] = {
        "architectures": [with_head if num_classes else without],
        "model_type": build.model_type,
        **entries(config, build, image_size),
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before transformers 5
    }
    if num_classes:
        fields[build.outputs] = num_classes  # PVT's config does not count the labels
    if num_classes and build.outputs == "num_labels":
        names = class_names or [f"LABEL_{i}" for i in range(num_classes)]
        fields["id2label"] = {str(i): name for i, name in enumerate(names)}
        fields["label2id"] = {name: i for i, name in enumerate(names)}
    return fields


def preprocessor_json(wanted: Preprocess, image_size: Size) -> dict[str, Any]:
    """The `preprocessor_config.json` of a processor that every family can use.

    It is a `ViTImageProcessor`; where the centre is cropped a `CLIPImageProcessor`, since the
    former crops in some versions of transformers only. But for what `preprocessing_differences`
    says, its pixels are ours with `backend="pil"`; with torchvision, the default, up to 2 of 255
    levels, and more where a bicubic kernel overshoots 0 or 255, which is clipped elsewhere.
    """
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
    if wanted.resize == "shortest" or wanted.crop < 1:
        edges = {"height": rows, "width": columns}
        larger = {side: wanted.before_crop(edge) for side, edge in edges.items()}
        shortest = {"shortest_edge": min(larger.values())}
        size = shortest if wanted.resize == "shortest" and rows == columns else larger
        fields |= {"size": size, "do_center_crop": True, "crop_size": edges}
        fields |= {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True}
    return fields


def preprocessing_differences(wanted: Preprocess, image_size: Size) -> list[str]:
    """In words, how pixels differ that transformers prepares by `preprocessor_json`."""
    borders = [wanted.before_crop(edge) - edge for edge in image_size]
    found = []
    if not wanted.antialias:
        found.append(NOT_ANTIALIASED.format("transformers"))
    if wanted.resize == "shortest" and image_size[0] != image_size[1]:
        found.append(
            "transformers squashes images to oblong sizes, where the model keeps their aspect ratio"
        )
    elif wanted.resize == "shortest" or any(round(b / 2) != b // 2 for b in borders):
        found.append(
            "transformers cuts out the centre one pixel further up or left, where the border that "
            "it cuts off is an odd number of pixels"
        )
    return found

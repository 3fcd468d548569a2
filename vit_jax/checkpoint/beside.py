"""What lies beside the weights that are written: the arguments with which timm builds the model.

In a file for timm the metadata's `timm` is JSON:

    {"architecture": …, "model_args": {…}, "pretrained_cfg": {…}}

and `timm.create_model(architecture, **model_args)` builds the model. Sizes for which timm has no
name are overrides of a stock one. Where timm's entry points take no such overrides, the place of
`architecture` is taken by `"class": "timm.models.….Class"`. Where they take no activation by name,
it stands beside the arguments: `"act_layer"`.
"""

import math
from typing import Any

from vit_jax.checkpoint import hf_dir
from vit_jax.errors import UserError
from vit_jax.families.family import RGB, Config, Size, Timm, channels
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import comparable, family_of, get, resolve

# Fields that change no tensor and nothing that is computed in evaluation.
_TRAINING_ONLY = ("dropout_rate", "attention_dropout_rate", "drop_path_rate")


def timm_description(
    config: Config, *, num_classes: int, image_size: Size, preprocess: Preprocess
) -> dict[str, Any]:
    """What the metadata's `timm` holds: architecture, model_args, pretrained_cfg.

    Raises:
      UserError: where timm has no such model.
    """
    built = _built(config, image_size)
    built["model_args"] |= {"num_classes": num_classes}
    if channels(config) != RGB:
        built["model_args"]["in_chans"] = channels(config)
    built["pretrained_cfg"] = {
        "num_classes": num_classes,
        "input_size": [channels(config), *image_size],
        "fixed_input_size": True,
        "interpolation": preprocess.method,
        "crop_pct": _crop_pct(preprocess),
        "crop_mode": "squash" if preprocess.resize == "squash" else "center",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
    return built


def _crop_pct(preprocess: Preprocess) -> float:
    """The share for which timm, which rounds a quotient down, resizes as we do."""

    def is_ours(share: float) -> bool:
        sides = preprocess.height_width
        return all(math.floor(side / share) == preprocess.before_crop(side) for side in sides)

    share = preprocess.crop
    return share if is_ours(share) else share - 1e-9


def preprocessing_differences(preprocess: Preprocess) -> list[str]:
    """In words, how pixels differ that timm prepares by the `pretrained_cfg` written here."""
    return [] if preprocess.antialias else [hf_dir.NOT_ANTIALIASED.format("timm")]


def _built(config: Config, image_size: Size) -> dict[str, Any]:
    layout = get(config).layouts.get("timm")
    if layout is None:
        raise UserError(f"timm has no models of the family {family_of(config)}")
    timm: Timm = layout.build
    stock, args = _stock(config), dict[str, Any]()
    if timm.always or stock is None:
        if timm.args is None:
            raise UserError(
                f"timm builds no {family_of(config)} of other sizes than the registered ones"
            )
        args = timm.args(config)
    side = resolve(stock or next(iter(get(config).architectures))).preprocess.size
    if timm.img_size and (timm.always or timm.cls or tuple(image_size) != (side, side)):
        args["img_size"] = list(image_size)
    built: dict[str, Any] = {"model_args": args}
    if stock is None and timm.cls is not None:
        built["class"] = timm.cls
    else:
        built["architecture"] = _timm_name(stock) if stock else _base(config, timm)
    if timm.act_layer is not None:
        place = built if timm.cls is not None else args
        place["act_layer"] = timm.act_layer
    return built


def _base(config: Config, timm: Timm) -> str:
    """The model of timm that is overridden for sizes that have no name there."""
    if timm.base is not None:
        return timm.base(config)
    return _timm_name(next(iter(get(config).architectures)))


def _timm_name(name: str) -> str:
    found = resolve(name).timm_name
    assert found is not None
    return found


def _stock(config: Config) -> str | None:
    """The registered model that has these sizes and a name in timm, or None."""
    named = config.get("model_name")
    fields = comparable(config, *_TRAINING_ONLY)
    fits = [
        name
        for name, known in get(config).architectures.items()
        if known.alias_of is None
        and resolve(name).timm_name
        and comparable(known.config, *_TRAINING_ONLY) == fields
    ]
    return str(named) if named in fits else next(iter(fits), None)

"""Weights for timm in one file that also says how timm builds the model.

The metadata's `timm` is JSON:

    {"architecture": …, "model_args": {…}, "pretrained_cfg": {…}}

and `timm.create_model(architecture, **model_args)` builds the model. Sizes for which timm has no
name are overrides of a stock one. A Mixer of a size of its own, which timm's entry points
cannot override, has `"class": "timm.models.mlp_mixer.MlpMixer"` in the place of `architecture`.
timm's Mixers take no activation by name, so theirs stands beside the arguments: `"act_layer"`.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from vit_jax.checkpoint import describe, zoo
from vit_jax.checkpoint.files.formats import write_safetensors
from vit_jax.checkpoint.stacked import unstack_blocks
from vit_jax.checkpoint.torch_names import to_torch
from vit_jax.tree import arrays
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import ModelSpec, family_of, is_google, registered, resolve
from vit_jax.families.resize import square
from vit_jax.models.variants import families

# ResNet stages -> the timm entry point that builds them.
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
_ACT = "gelu_tanh"


def save_timm(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    model: Any,
    *,
    image_size: tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes safetensors under timm's names, with the arguments that build the model in timm.

    Args:
      path: Replaced as a whole, or left as it was.
      params: Nested dict in linen names, blocks stacked or not.
      model: A registered name, a ModelSpec, a config mapping, or a linen module.
      image_size: (height, width) in pixels; needed when the grid is not square.
      preprocess: How images are prepared; by default the model's own, else the official way.
      metadata: Further text for the header.

    Raises:
      UserError: if timm cannot hold the model or the parameters are not the model's.
    """
    config = describe.config_of(model)
    state = to_torch({"params": params}, model, "timm")
    shapes = describe.shapes_of(arrays(unstack_blocks(params)))
    if image_size is None:
        measure = square_image_size if is_google(config) else zoo.image_size_of
        image_size = measure(config, shapes)
    described = timm_description(
        config,
        num_classes=describe.num_classes(shapes),
        image_size=image_size,
        preprocess=preprocess or _preprocess_of(model, image_size),
    )
    write_safetensors(
        path, state, {"format": "pt", "timm": json.dumps(described), **(metadata or {})}
    )


def timm_description(
    config: Mapping[str, Any],
    *,
    num_classes: int,
    image_size: tuple[int, int],
    preprocess: Preprocess,
) -> dict[str, Any]:
    """What the metadata's `timm` holds: architecture, model_args, pretrained_cfg."""
    if is_google(config):
        built = _mixer(config) if family_of(config) == "mixer" else _vit(config)
        built["model_args"] |= {"img_size": list(image_size)}
    else:
        built = _of_survey(config, image_size)
    built["model_args"] |= {"num_classes": num_classes}
    built["pretrained_cfg"] = {
        "num_classes": num_classes,
        "input_size": [3, *image_size],
        "fixed_input_size": True,
        "interpolation": preprocess.method,
        "crop_pct": preprocess.crop,
        "crop_mode": "squash" if preprocess.resize == "squash" else "center",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
    return built


def square_image_size(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int]:
    """(height, width) in pixels of the square image whose patches the parameters count."""
    rows, columns = square(describe.num_patches(config, shapes), "the model's")
    stride = describe.downsampling(config)
    return rows * stride, columns * stride


def _preprocess_of(model: Any, image_size: tuple[int, int]) -> Preprocess:
    spec = resolve(model) if isinstance(model, str) else model
    return spec.preprocess if isinstance(spec, ModelSpec) else Preprocess(size=max(image_size))


def _vit(config: Mapping[str, Any]) -> dict[str, Any]:
    width, transformer = config["hidden_size"], config["transformer"]
    args = {
        "patch_size": config["patches"]["size"][0],
        "embed_dim": width,
        "depth": transformer["num_layers"],
        "num_heads": transformer["num_heads"],
        "mlp_ratio": _ratio(transformer["mlp_dim"], width),
        "act_layer": _ACT,
    }
    pools = {"token": "token", "gap": "avg", "unpooled": "", "token_unpooled": "", "map": "map"}
    args["global_pool"] = pools[config["classifier"]]
    if not describe.has_class_token(config):
        # Without `fc_norm=False` timm moves the last norm behind the mean.
        args |= {"class_token": False, "fc_norm": False}
    return {"architecture": _architecture(config), "model_args": args}


def _of_survey(config: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    names = zoo.names_of(config)
    if "timm" not in names.layouts:
        raise UserError(f"timm has no models of the family {family_of(config)}")
    stock = zoo.fitting_models(config)
    if (name := config.get("model_name")) in stock:
        stock = (name,)
    args: dict[str, Any] = {}
    if not stock:
        if names.timm_args is None:
            raise UserError(
                f"timm builds no {family_of(config)} of other sizes than the registered ones"
            )
        stock, args = tuple(families()[family_of(config)].variants)[:1], names.timm_args(config)
    side = resolve(stock[0]).preprocess.size
    if tuple(image_size) != (side, side) and names.timm_img_size:
        args["img_size"] = list(image_size)
    return {"architecture": stock[0], "model_args": args}


def _architecture(config: Mapping[str, Any]) -> str:
    if (stock := _stock_name(config)) is not None:
        return stock
    if (resnet := config.get("resnet")) is None:
        return "vit_tiny_patch16_224"
    stages = tuple(resnet["num_layers"])
    if stages not in _HYBRIDS or resnet["width_factor"] != 1:
        raise UserError(
            f"timm has no hybrid with ResNet stages {stages} and width factor "
            f"{resnet['width_factor']}; it has {sorted(_HYBRIDS)} with width factor 1"
        )
    return _HYBRIDS[stages]


def _mixer(config: Mapping[str, Any]) -> dict[str, Any]:
    if (stock := _stock_name(config)) is not None:
        return {"architecture": stock, "model_args": {}, "act_layer": _ACT}
    width = config["hidden_dim"]
    hidden = (config["tokens_mlp_dim"], config["channels_mlp_dim"])
    args = {
        "patch_size": config["patches"]["size"][0],
        "embed_dim": width,
        "num_blocks": config["num_blocks"],
        "mlp_ratio": [_ratio(h, width) for h in hidden],
    }
    return {"class": "timm.models.mlp_mixer.MlpMixer", "model_args": args, "act_layer": _ACT}


def _stock_name(config: Mapping[str, Any]) -> str | None:
    """timm's name of the model that has these sizes, or None."""
    sizes = _sizes(config)
    models = (s for s in registered().values() if s.timm_name and is_google(s.config))
    return next((s.timm_name for s in models if _sizes(s.config.to_dict()) == sizes), None)


def _sizes(config: Mapping[str, Any]) -> tuple[Any, ...]:
    if family_of(config) == "mixer":
        fields = ("hidden_dim", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim")
        return (tuple(config["patches"]["size"]), *(config[f] for f in fields))
    transformer, resnet = config["transformer"], config.get("resnet")
    return (
        tuple(config["patches"]["size"]),
        config["hidden_size"],
        *(transformer[f] for f in ("num_layers", "num_heads", "mlp_dim")),
        resnet and (tuple(resnet["num_layers"]), resnet["width_factor"]),
    )


def _ratio(hidden: int, width: int) -> float:
    """The `mlp_ratio` from which timm's `int(width * mlp_ratio)` gives `hidden` back."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)

"""MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601); its sizes stand in `configs/models.py`."""

from typing import Any

from vit_jax.configs import models
from vit_jax.families import released
from vit_jax.families.family import (
    Architecture,
    Config,
    Family,
    Layout,
    Pairs,
    Shape,
    Shapes,
    Size,
    Timm,
    Weights,
)
from vit_jax.families.parts import (
    COMPUTES,
    CONV,
    DENSE,
    GELU,
    MLP,
    NORM,
    TANH,
    always,
    mlp_ratio,
)
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.published import published_of
from vit_jax.families.resize import square
from vit_jax.families.rules import Table, count, rule, under
from vit_jax.families.shapes import mixer_shapes
from vit_jax.families.vit import timm_preprocess

_TIMM_NAMES = {"mixer_b32": "Mixer-B_32", "mixer_b16": "Mixer-B_16", "mixer_l16": "Mixer-L_16"}
_SIZES = ("hidden_dim", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim")
_BLOCK = (
    under("norm1", "LayerNorm_0", NORM)
    + under("mlp_tokens", "token_mixing", MLP)
    + under("norm2", "LayerNorm_1", NORM)
    + under("mlp_channels", "channel_mixing", MLP)
)


def _architectures() -> dict[str, Architecture]:
    configs = {n: c.to_dict() for n, c in models.MODEL_CONFIGS.items() if "tokens_mlp_dim" in c}
    timm_names = {official: f"{name}_224" for name, official in _TIMM_NAMES.items()}
    found = {
        name: Architecture(
            config,
            {"": Weights(Preprocess(size=224), layout="official")} | published_of(name),
            timm_name=timm_names[name],
        )
        for name, config in configs.items()
    }
    for name, official in _TIMM_NAMES.items():
        weights = {"": Weights(timm_preprocess(224, 0.875))}
        found[f"{name}_224"] = Architecture(configs[official], weights, alias_of=official)
    return found


def _timm(config: Config) -> Table:
    rows = under("stem.proj", "stem", CONV)
    for i in range(config["num_blocks"]):
        rows += under(f"blocks.{i}", f"MixerBlock_{i}", _BLOCK)
    return rows + under("norm", "pre_head_layer_norm", NORM) + under("head", "head", DENSE)


def _timm_skeleton(names: Any) -> dict[str, Any]:
    return {"tokens_mlp_dim": None, "num_blocks": count(names, r"blocks\.(\d+)")}


def _timm_args(config: Config) -> dict[str, Any]:
    width = config["hidden_dim"]
    hidden = (config["tokens_mlp_dim"], config["channels_mlp_dim"])
    return {
        "patch_size": config["patches"]["size"][0],
        "embed_dim": width,
        "num_blocks": config["num_blocks"],
        "mlp_ratio": [mlp_ratio(h, width) for h in hidden],
    }


def _points(config: Config) -> Pairs:
    blocks = [(f"MixerBlock_{i}", f"blocks.{i}") for i in range(config["num_blocks"])]
    return [("stem", "stem"), *blocks, ("pre_head_layer_norm", "norm")]


def _names(config: Config) -> list[str]:
    return list(dict(mixer_shapes(config, 1, 1)))


def _big_vision(config: Config) -> Table:
    return [row for name in _names(config) for row in rule(f"params/{name}", name)]


def _patch_size(config: Config) -> Size:
    """(height, width) in pixels."""
    height, width = config["patches"]["size"]
    return height, width


def _num_patches(config: Config, shapes: Shapes) -> int:
    del config
    return shapes["MixerBlock_0/token_mixing/Dense_0/kernel"][0]


def _image_size(config: Config, shapes: Shapes) -> Size:
    rows, columns = square(_num_patches(config, shapes), "the weights'")
    height, width = _patch_size(config)
    return rows * height, columns * width


def _shapes(config: Config, num_classes: int, image_size: Size) -> dict[str, Shape]:
    height, width = _patch_size(config)
    patches = (image_size[0] // height) * (image_size[1] // width)
    return dict(mixer_shapes(config, num_classes, patches))


def _infer(shapes: Shapes) -> dict[str, Any]:
    rows, columns, _, width = shapes["stem/kernel"]
    return {
        "patches": {"size": (rows, columns)},
        "hidden_dim": width,
        "num_blocks": count(shapes, r"MixerBlock_(\d+)"),
        "tokens_mlp_dim": shapes["MixerBlock_0/token_mixing/Dense_0/kernel"][1],
        "channels_mlp_dim": shapes["MixerBlock_0/channel_mixing/Dense_0/kernel"][1],
    }


def _fit(wanted: Config, found: Config) -> dict[str, Any] | None:
    same = all(wanted[field] == found[field] for field in _SIZES)
    return dict(wanted) if same and _patch_size(wanted) == _patch_size(found) else None


FAMILIES = {
    "mixer": Family(
        title="MLP-Mixer",
        stem=lambda config: ("stem/kernel",),
        paper="2105.01601",
        model="mixer:MlpMixer",
        computes=COMPUTES,
        architectures=_architectures(),
        layouts={
            "timm": Layout(
                _timm,
                skeleton=_timm_skeleton,
                points=_points,
                differences=lambda config: [GELU],
                build=Timm(_timm_args, cls="timm.models.mlp_mixer.MlpMixer", act_layer=TANH),
            ),
            "official": Layout(lambda config: released.writing(_names(config))),
            "big_vision": Layout(_big_vision),
        },
        small=always(
            {"num_blocks": 2, "hidden_dim": 32, "tokens_mlp_dim": 16, "channels_mlp_dim": 32}
        ),
        image_size=_image_size,
        num_patches=_num_patches,
        stride=_patch_size,
        resize_method="official",
        shapes=_shapes,
        infer=_infer,
        fit=_fit,
    )
}

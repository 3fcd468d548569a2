"""A model's config from the names and shapes of its tensors.

What names and shapes leave open is said, never guessed: the number of heads in torch files
(`num_heads` None), and whether tokens without a class token are averaged or kept ('gap').
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.checkpoint import describe
from vit_jax.checkpoint.shapes import Shape, param_shapes, require_shapes
from vit_jax.errors import UserError
from vit_jax.families.registry import ModelSpec, family_of, is_google, registered
from vit_jax.families.rules import require_names


def from_linen(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Constructor fields of the model with these parameters (linen names, unstacked).

    Raises UserError if they are no Vision Transformer's, hybrid's or Mixer's, in full.
    """
    try:
        config = _mixer(shapes) if "stem/kernel" in shapes else _vit(shapes)
        patches = describe.num_patches(config, shapes)
    except (KeyError, IndexError, ValueError) as e:
        raise UserError(f"neither a Vision Transformer nor a Mixer: {e} is missing") from None
    expected = param_shapes(config, num_classes=describe.num_classes(shapes), num_patches=patches)
    require_names(set(expected), set(shapes), "parameters")
    require_shapes(expected, shapes)
    return config


def skeleton(names: Iterable[str], layout: str) -> dict[str, Any]:
    """What a torch table needs to be built (depth, classifier, ResNet stages), from the names.

    Widths are absent and `num_heads` is 1, so that tables work on any size.
    """
    names = list(names)
    if layout == "hf":
        vit = {"classifier": "token", "hidden_size": None, "representation_size": None}
        if "pooler.dense.weight" in names:
            vit["representation_size"] = 0
        return vit | {"transformer": _heads_open(_count(names, r"(?:vit\.)?encoder\.layer\.(\d+)"))}
    depth = _count(names, r"blocks\.(\d+)")
    if "stem.proj.weight" in names:
        return {"tokens_mlp_dim": None, "num_blocks": depth}
    classifier = "token" if "cls_token" in names else "gap"
    config: dict[str, Any] = {
        "hidden_size": None,
        "classifier": "map" if "attn_pool.latent" in names else classifier,
        "transformer": _heads_open(depth),
    }
    if any(n.startswith("patch_embed.backbone.") for n in names):
        stages = _counts(names, r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)")
        config["resnet"] = {"num_layers": stages, "width_factor": 1}
    return config


def with_known_heads(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the heads of the registered models of its size; None if unknown."""
    if config.get("transformer") is None:
        return config
    models = [s.config.to_dict() for s in official_models() if fits(s, config, heads=False)]
    heads = {model["transformer"]["num_heads"] for model in models}
    known = heads.pop() if len(heads) == 1 else None
    return config | {"transformer": config["transformer"] | {"num_heads": known}}


def official_models() -> list[ModelSpec]:
    """The original's models, each under its official name only."""
    return [s for s in registered().values() if s.name != s.timm_name and is_google(s.config)]


def fits(spec: ModelSpec, config: Mapping[str, Any], *, heads: bool = True) -> bool:
    """Whether a registered model has this config's sizes."""
    return sizes(spec.config.to_dict(), heads) == sizes(config, heads)


def sizes(config: Mapping[str, Any], heads: bool = True) -> tuple[Any, ...]:
    """What tells models apart; the representation before the head and the image do not."""
    patch = tuple(config["patches"]["size"])
    if family_of(config) == "mixer":
        fields = ("hidden_dim", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim")
        return (patch, *(config[f] for f in fields))
    transformer, resnet = config.get("transformer"), config.get("resnet")
    if transformer is not None:
        depth, width = transformer["num_layers"], transformer["mlp_dim"]
        transformer = (depth, width, transformer["num_heads"] if heads else None)
    return (
        patch,
        config["hidden_size"],
        transformer,
        (describe.has_class_token(config), config["classifier"] == "map"),
        None if resnet is None else (tuple(resnet["num_layers"]), resnet["width_factor"]),
    )


def _vit(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    kernel = shapes["embedding/kernel"]
    rows, columns, _, width = kernel
    config: dict[str, Any] = {
        "patches": {"size": (rows, columns)},
        "hidden_size": width,
        "transformer": None,
        "classifier": "token" if "cls" in shapes else "gap",
        "representation_size": shapes.get("pre_logits/bias", (None,))[0],
    }
    if "MAPHead_0/probe" in shapes:
        config["classifier"] = "map"
    if depth := _count(shapes, r"Transformer/encoderblock_(\d+)"):
        block = "Transformer/encoderblock_0"
        config["transformer"] = {
            "num_layers": depth,
            "num_heads": shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][1],
            "mlp_dim": shapes[f"{block}/MlpBlock_0/Dense_0/kernel"][1],
        }
    if "conv_root/kernel" in shapes:
        factor = shapes["conv_root/kernel"][3] / 64
        stages = _counts(shapes, r"block(\d+)/unit(\d+)", first=1)
        config["resnet"] = {
            "num_layers": stages,
            "width_factor": int(factor) if factor == int(factor) else factor,
        }
    return config


def _mixer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    rows, columns, _, width = shapes["stem/kernel"]
    return {
        "patches": {"size": (rows, columns)},
        "hidden_dim": width,
        "num_blocks": _count(shapes, r"MixerBlock_(\d+)"),
        "tokens_mlp_dim": shapes["MixerBlock_0/token_mixing/Dense_0/kernel"][1],
        "channels_mlp_dim": shapes["MixerBlock_0/channel_mixing/Dense_0/kernel"][1],
    }


def _heads_open(depth: int) -> dict[str, Any]:
    return {"num_layers": depth, "num_heads": 1}


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the pattern's group takes."""
    return len({m[1] for n in names if (m := re.match(pattern, n))})


def _counts(names: Iterable[str], pattern: str, first: int = 0) -> tuple[int, ...]:
    """For each number of the pattern's first group, how many its second takes."""
    pairs = {(int(m[1]), m[2]) for n in names if (m := re.match(pattern, n))}
    stages = {i for i, _ in pairs}
    return tuple(sum(i == j for i, _ in pairs) for j in range(first, first + len(stages)))

"""EVA-02 (Fang et al. 2023, arXiv:2303.11331, Table 1), its image towers of CLIP, and EVA.

EVA-CLIP: Sun et al. 2023, arXiv:2303.15389. EVA: Fang et al. 2022, arXiv:2211.07636, Table 1.

Names: timm's class `Eva`, and baaivision/EVA ('torch'). Models without a norm in the MLP have one
layer for queries, keys and values, and one for the gate and what it gates; the others have one
each. Keys have no bias.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.families.family import Architecture, Config, Family, Layout, Pairs, Timm, Weights
from vit_jax.families.parts import (
    ANGLES,
    CLIP_MEAN,
    CLIP_STD,
    CONV,
    DENSE,
    HEADS,
    MLP,
    NORM,
    OUT,
    POSITIONS,
    QKV,
    SMALL,
    always,
    encoder_block,
    encoder_blocks,
    encoder_points,
    gated_mlp,
    imagenet,
    merged,
    mlp_ratio,
    patch_size,
    positions,
)
from vit_jax.families.rules import Table, rule, under

# Width, depth, heads, width of the MLP, and whether the MLP has a norm.
_SIZES = {
    "tiny": (192, 12, 3, 512, False),
    "small": (384, 12, 6, 1024, False),
    "base": (768, 12, 12, 2048, True),
    "large": (1024, 24, 16, 2730, True),
}
_GRID = 16  # rows and columns of patches in pretraining


def _eva02(size: str, patch: int = 14) -> dict[str, Any]:
    width, depth, heads, mlp_dim, mlp_norm = _SIZES[size]
    return {
        "patch_size": patch,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": mlp_dim,
        "rotary": True,
        "gated_mlp": True,
        "mlp_norm": mlp_norm,
        "attention_norm": False,
        "pool": "gap",
    }


_GIANT = {
    "patch_size": 14,
    "hidden_size": 1408,
    "num_layers": 40,
    "num_heads": 16,
    "mlp_dim": 6144,
    "rotary": False,
    "gated_mlp": False,
    "mlp_norm": False,
    "attention_norm": False,
    "pool": "gap",
}


def _architecture(
    name: str, config: Config, size: int, *tags: str, classes: int = 1000
) -> Architecture:
    """`tags`: timm's; images are squashed where it says so, after the tag, and else cropped."""
    weights = {}
    for described in tags:
        tag, _, how = described.partition(" ")
        images = imagenet(
            size,
            0.9 if size == 224 else 1.0,
            mean=CLIP_MEAN,
            std=CLIP_STD,
            resize="squash" if "squash" in how else "shortest",
        )
        if "imagenet" in how:
            images = imagenet(size, 1.0, resize="squash")
        count = 21_841 if tag.endswith("in22k") and classes else classes
        source = f"timm/{name}.{tag}"
        weights[tag] = Weights(images, count, None, source, "timm", "MIT")
    return Architecture(config, weights)


def _architectures() -> dict[str, Architecture]:
    found = {}

    def add(name: str, *args: Any, **fields: Any) -> None:
        found[name] = _architecture(name, *args, **fields)

    for size in _SIZES:
        fine = 336 if size in ("tiny", "small") else 448
        tags, tuned = ["mim_in22k"], ["mim_in22k_ft_in1k"]
        if fine == 448:
            tuned += ["mim_in22k_ft_in22k_in1k squash", "mim_in22k_ft_in22k squash"]
        if size == "large":
            tags.append("mim_m38m")
            tuned += [
                "mim_m38m_ft_in1k",
                "mim_m38m_ft_in22k_in1k squash",
                "mim_m38m_ft_in22k squash",
            ]
        add(f"eva02_{size}_patch14_224", _eva02(size), 224, *tags, classes=0)
        add(f"eva02_{size}_patch14_{fine}", _eva02(size), fine, *tuned)
    tower = {"attention_norm": True, "pool": "token"}
    for size, patch, pixels, classes in (
        ("base", 16, 224, 512),
        ("large", 14, 224, 768),
        ("large", 14, 336, 768),
    ):
        name = f"eva02_{size}_patch{patch}_clip_{pixels}"
        add(name, _eva02(size, patch) | tower, pixels, "merged2b", classes=classes)
    add("eva_giant_patch14_224", _GIANT, 224, "clip_ft_in1k")
    add(
        "eva_giant_patch14_336",
        _GIANT,
        336,
        "clip_ft_in1k squash",
        "m30m_ft_in22k_in1k squash, imagenet",
    )
    add("eva_giant_patch14_560", _GIANT, 560, "m30m_ft_in22k_in1k squash, imagenet")
    clip = {**_GIANT, "pool": "token"}
    add("eva_giant_patch14_clip_224", clip, 224, "laion400m", "merged2b", classes=1024)
    return found


# --- names ----------------------------------------------------------------------------------------


def _table(
    config: Config, *, biases: tuple[str, str], norms: tuple[str, str], mlp: tuple[str, ...]
) -> Table:
    """The names of a library.

    Args:
      biases: Of queries and values, where these and keys have a layer each.
      norms: In the attention and in the MLP.
      mlp: The gate, what it gates, both where they are one layer, and the last layer.
    """
    gate, gated, both, last = mlp
    is_split = config["mlp_norm"]
    if is_split:
        attention = [row for x in QKV for row in under(f"{x[0]}_proj", x, HEADS[:1])]
        perceptron = under(gate, "gate", DENSE) + under(gated, "Dense_0", DENSE)
        perceptron += under(norms[1], "LayerNorm_0", NORM) + under(last, "Dense_1", DENSE)
    else:
        attention = under("qkv", "", merged(QKV, bias=False))
        perceptron = gated_mlp(both, last) if config["gated_mlp"] else MLP
    for theirs, ours in zip(biases if is_split else _FUSED, ("query", "value"), strict=True):
        attention += rule(theirs, f"{ours}/bias", "(heads d) -> heads d")
    if config["attention_norm"]:
        attention += under(norms[0], "LayerNorm_0", NORM)
    attention += under("proj", "out", OUT)
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    rows += under("patch_embed.proj", "embedding", CONV)
    rows += encoder_blocks(config, "blocks", encoder_block(attention, perceptron))
    rows += under(*_last_norm(config), NORM)
    return rows + under("head", "head", DENSE)


_FUSED = ("q_bias", "v_bias")


def _last_norm(config: Config) -> tuple[str, str]:
    """Theirs and ours: that of the mean, or of all tokens."""
    takes_mean = config["pool"] == "gap"
    return ("fc_norm", "fc_norm") if takes_mean else ("norm", "Transformer/encoder_norm")


def _timm(config: Config) -> Table:
    return _table(
        config,
        biases=("q_proj.bias", "v_proj.bias"),
        norms=("norm", "norm"),
        mlp=("fc1_g", "fc1_x", "fc1", "fc2"),
    )


def _torch(config: Config) -> Table:
    """The names in baaivision/EVA, EVA-02/asuka/modeling_finetune.py and EVA-CLIP's `visual`."""
    return _table(
        config,
        biases=_FUSED,
        norms=("inner_attn_ln", "ffn_ln"),
        mlp=("w1", "w2", "w12", "w3"),
    )


# --- timm -----------------------------------------------------------------------------------------

_POOLS = {"gap": "avg", "token": "token"}  # our name of it, and timm's


def _timm_args(config: Config) -> dict[str, Any]:
    width, rotary = config["hidden_size"], config["rotary"]
    return {
        "patch_size": patch_size(config)[0],
        "embed_dim": width,
        "depth": config["num_layers"],
        "num_heads": config["num_heads"],
        "mlp_ratio": mlp_ratio(config["mlp_dim"], width),
        "swiglu_mlp": config["gated_mlp"],
        "scale_mlp": config["mlp_norm"],
        "scale_attn_inner": config["attention_norm"],
        "qkv_fused": not config["mlp_norm"],
        "use_rot_pos_emb": rotary,
        "ref_feat_shape": [_GRID, _GRID] if rotary else None,
        "global_pool": _POOLS[config["pool"]],
    }


def _is_built(config: Config, args: Mapping[str, Any]) -> bool:
    return args.get("global_pool", _POOLS[config["pool"]]) == _POOLS[config["pool"]]


def _points(config: Config) -> Pairs:
    theirs, ours = _last_norm(config)
    return [*encoder_points(norm=None)(config), (ours, theirs)]


FAMILIES = {
    "eva": Family(
        title="EVA",
        paper="2303.11331",
        model="eva:EVA",
        computes="GELU in its erf form, or a gate of SiLU and rotary positions; LayerNorm eps 1e-6",
        architectures=_architectures(),
        layouts={
            "timm": Layout(
                _timm,
                points=_points,
                differences=lambda config: [ANGLES] if config["rotary"] else [],
                build=Timm(_timm_args, always=True, builds=_is_built),
            ),
            "torch": Layout(_torch, ignore=(r"(?:.*\.)?rope\.freqs_(?:cos|sin)",)),
        },
        small=always(SMALL),
        **positions(prefix=1),
    ),
}

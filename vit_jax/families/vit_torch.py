"""Vision Transformers in files of PyTorch: timm's, and Hugging Face's."""

from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.families import hf
from vit_jax.families.family import Config, Difference, HuggingFace, Layout, Pairs, Size, Timm
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ENCODER_BLOCK,
    GELU,
    HEADS,
    KERNEL,
    MLP,
    NORM,
    OUT,
    TANH,
    merged,
    mlp_ratio,
)
from vit_jax.families.rules import Table, count, counts, rule, under
from vit_jax.families.shapes import POSITIONS, has_class_token, refuse_other_encoders

# --- timm -----------------------------------------------------------------------------------------

MAP_HEAD = (
    rule("latent", "probe")
    + under("q", "MultiHeadDotProductAttention_0/query", HEADS)
    + under("kv", "MultiHeadDotProductAttention_0", merged(("key", "value")))
    + under("proj", "MultiHeadDotProductAttention_0/out", OUT)
    + under("norm", "LayerNorm_0", NORM)
    + under("mlp", "MlpBlock_0", MLP)
)
_RESIDUAL_UNIT = [
    row
    for k in (1, 2, 3)
    for row in under(f"conv{k}", f"conv{k}", KERNEL) + under(f"norm{k}", f"gn{k}", NORM)
]
_PROJECTION = under("downsample.conv", "conv_proj", KERNEL) + under(
    "downsample.norm", "gn_proj", NORM
)
# ResNet stages -> the model of timm that has them.
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


def _timm(config: Config) -> Table:
    """Checked against timm 1.0.31."""
    refuse_other_encoders(config)
    if config.get("representation_size") is not None:
        raise UserError(
            "timm has no `pre_logits` layer; drop it (`drop_pre_logits`, which drops the head that "
            "reads it too) or keep the official format"
        )
    if config.get("transformer") is None:
        raise UserError("timm has no Vision Transformer without an encoder")
    if config["classifier"] == "first":
        raise UserError("timm has no Vision Transformer that reads its first patch")
    rows = rule("pos_embed", POSITIONS)
    if has_class_token(config):
        rows += rule("cls_token", "cls")
    if config.get("resnet") is not None:
        rows += under("patch_embed.backbone", "", _timm_resnet(config["resnet"]["num_layers"]))
    rows += under("patch_embed.proj", "embedding", CONV)
    for i in range(config["transformer"]["num_layers"]):
        rows += under(f"blocks.{i}", f"Transformer/encoderblock_{i}", ENCODER_BLOCK)
    if config["classifier"] == "map":
        rows += under("attn_pool", "MAPHead_0", MAP_HEAD)
    rows += under("norm", "Transformer/encoder_norm", NORM) + under("head", "head", DENSE)
    return under("", "", rows, heads=config["transformer"]["num_heads"])


def _timm_resnet(num_layers: tuple[int, ...]) -> Table:
    # Without stages timm's backbone *is* the stem.
    stem = "stem." if num_layers else ""
    rows = under(f"{stem}conv", "conv_root", KERNEL) + under(f"{stem}norm", "gn_root", NORM)
    for i, units in enumerate(num_layers):
        for j in range(units):
            unit = _RESIDUAL_UNIT + (_PROJECTION if j == 0 else [])
            rows += under(f"stages.{i}.blocks.{j}", f"block{i + 1}/unit{j + 1}", unit)
    return rows


def _timm_skeleton(names: Iterable[str]) -> dict[str, Any]:
    names = list(names)
    classifier = "token" if "cls_token" in names else "gap"
    config: dict[str, Any] = {
        "hidden_size": None,
        "classifier": "map" if "attn_pool.latent" in names else classifier,
        "transformer": {"num_layers": count(names, r"blocks\.(\d+)"), "num_heads": 1},
    }
    if any(n.startswith("patch_embed.backbone.") for n in names):
        stages = counts(names, r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)")
        config["resnet"] = {"num_layers": stages, "width_factor": 1}
    return config


def _timm_args(config: Config) -> dict[str, Any]:
    width, transformer = config["hidden_size"], config["transformer"]
    pools = {"token": "token", "gap": "avg", "unpooled": "", "token_unpooled": "", "map": "map"}
    args = {
        "patch_size": config["patches"]["size"][0],
        "embed_dim": width,
        "depth": transformer["num_layers"],
        "num_heads": transformer["num_heads"],
        "mlp_ratio": mlp_ratio(transformer["mlp_dim"], width),
        "global_pool": pools[config["classifier"]],
    }
    if not has_class_token(config):
        # Without `fc_norm=False` timm moves the last norm behind the mean.
        args |= {"class_token": False, "fc_norm": False}
    return args


def _timm_builds(config: Config, args: Mapping[str, Any]) -> bool:
    wanted = _timm_args(config)
    told = {"global_pool": "token", "class_token": True, "fc_norm": None, **args}
    if told["global_pool"] != wanted["global_pool"]:
        return False
    is_mean = wanted["global_pool"] == "avg"
    return told["class_token"] == has_class_token(config) and not (is_mean and told["fc_norm"])


def _timm_base(config: Config) -> str:
    if (resnet := config.get("resnet")) is None:
        return "vit_tiny_patch16_224"
    stages = tuple(resnet["num_layers"])
    if stages not in _HYBRIDS or resnet["width_factor"] != 1:
        raise UserError(
            f"timm has no hybrid with ResNet stages {stages} and width factor "
            f"{resnet['width_factor']}; it has {sorted(_HYBRIDS)} with width factor 1"
        )
    return _HYBRIDS[stages]


def _timm_points(config: Config) -> Pairs:
    points = []
    if config.get("resnet") is not None:
        points = _resnet_points(config["resnet"]["num_layers"])
    points += [
        ("embedding", "patch_embed"),
        ("Transformer/posembed_input", "norm_pre"),  # an identity just behind the addition
    ]
    depth = config["transformer"]["num_layers"]
    points += [(f"Transformer/encoderblock_{i}", f"blocks.{i}") for i in range(depth)]
    return [*points, ("Transformer/encoder_norm", "norm")]


def _resnet_points(num_layers: tuple[int, ...]) -> Pairs:
    backbone = "patch_embed.backbone"
    # Without stages timm's backbone *is* the stem. Its norm includes the activation, ours not.
    points = [("conv_root", f"{backbone}.{'stem.' if num_layers else ''}conv")]
    for i, units in enumerate(num_layers):
        stage, theirs = f"block{i + 1}", f"{backbone}.stages.{i}"
        points += [(f"{stage}/unit{j + 1}", f"{theirs}.blocks.{j}") for j in range(units)]
    return points


def _timm_differences(config: Config) -> list[Difference]:
    return [GELU, *_timm_unsaid(config)]


def _timm_unsaid(config: Config) -> list[Difference]:
    """What no argument of timm's models changes."""
    if config.get("resnet") is None:
        return []
    return [
        Difference("GroupNorm eps", "1e-6", "1e-5"),
        Difference("StdConv", "(w - mean) / (std + 1e-5)", "(w - mean) / sqrt(var + 1e-8)"),
    ]


# --- Hugging Face ---------------------------------------------------------------------------------


def _hf(config: Config) -> Table:
    """`ViTForImageClassification`; UserError for what Hugging Face has no model for."""
    if config.get("representation_size") is not None:
        raise UserError(
            "Hugging Face's classifier has no `pre_logits` before its head; drop it "
            "(`drop_pre_logits`, which drops the head that reads it too)"
        )
    return under("vit", "", _hf_headless(config)) + under("classifier", "head", DENSE)


def _hf_headless(config: Config) -> Table:
    """`ViTModel`, whose pooler is the official `pre_logits`."""
    refuse_other_encoders(config)
    if config.get("resnet") is not None:
        raise UserError("Hugging Face's ViT holds no hybrids; use official or timm")
    if config.get("transformer") is None or config["classifier"] != "token":
        raise UserError(
            "Hugging Face's ViT classifies by its class token; this model's classifier is "
            f"{config['classifier']!r}. Use official or timm"
        )
    transformer = config["transformer"]
    rows = hf.encoder(transformer["num_layers"], transformer["num_heads"], POSITIONS)
    if config.get("representation_size") is not None:
        rows += under("pooler.dense", "pre_logits", DENSE)
    return rows


def _hf_skeleton(names: Iterable[str]) -> dict[str, Any]:
    names = list(names)
    return {
        "classifier": "token",
        "hidden_size": None,
        "representation_size": 0 if "pooler.dense.weight" in names else None,
        "transformer": {
            "num_layers": count(names, r"(?:vit\.)?encoder\.layer\.(\d+)"),
            "num_heads": 1,
        },
    }


def _hf_points(config: Config) -> Pairs:
    first, *others = hf.encoder_points("vit.", config["transformer"]["num_layers"])
    return [first, ("Transformer/posembed_input", "vit.embeddings"), *others]


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    transformer = config["transformer"]
    fields = hf.write_encoder(
        hidden_size=config["hidden_size"],
        num_layers=transformer["num_layers"],
        num_heads=transformer["num_heads"],
        mlp_dim=transformer["mlp_dim"],
        patch=tuple(config["patches"]["size"]),
        image_size=image_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )
    if config.get("representation_size") is not None:
        fields |= {"pooler_output_size": config["representation_size"], "pooler_act": "tanh"}
    return fields


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    told = hf.read_encoder(fields)
    return {
        "patches": {"size": hf.pair(told["patch_size"])},
        "hidden_size": told["hidden_size"],
        "transformer": {name: told[name] for name in ("num_layers", "num_heads", "mlp_dim")},
        "classifier": "token",
        "representation_size": None,
    }


TIMM = Layout(
    _timm,
    skeleton=_timm_skeleton,
    points=_timm_points,
    differences=_timm_differences,
    unsaid=_timm_unsaid,
    build=Timm(
        _timm_args,
        base=_timm_base,
        always=True,
        act_layer=TANH,
        builds=_timm_builds,
    ),
)
HUGGING_FACE = Layout(
    _hf,
    headless=_hf_headless,
    respell=hf.respelling("vit."),
    skeleton=_hf_skeleton,
    points=_hf_points,
    differences=lambda config: [GELU, Difference("LayerNorm eps", "1e-6", "1e-12")],
    build=HuggingFace(
        "vit",
        ("ViTForImageClassification", "ViTModel"),
        _write_hf,
        _read_hf,
        shipped={"hidden_act": "gelu", "layer_norm_eps": 1e-12},
        ours={"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        pooler=True,
    ),
)

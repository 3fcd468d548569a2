"""DeiT (Touvron et al. 2021, arXiv:2012.12877, Tables 1 and 5), DeiT III and DINO.

DeiT III: Touvron et al. 2022, arXiv:2204.07118, Table 1. Top-1: the official README of
facebookresearch/deit. DINO: Caron et al. 2021, arXiv:2104.14294, Table 1; its names are those of
the official hub.

Names: DeiT and DeiT III: the Vision Transformer's names, a second token and head, LayerScale.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.families import hf
from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    Family,
    HuggingFace,
    Layout,
    Pairs,
    Size,
    Timm,
    Weights,
)
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ENCODER_BLOCK,
    ERF,
    LAYER_SCALE,
    NORM,
    POSITIONS,
    SMALL,
    always,
    architecture,
    encoder_blocks,
    encoder_points,
    imagenet,
    patch_size,
    positions,
    with_weights,
)
from vit_jax.families.rules import Table, rule, under

# Width, depth and heads; the MLP is four times as wide as a token (arXiv:2012.12877, Table 1).
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


def sizes(size: str, patch: int) -> dict[str, Any]:
    """Constructor fields of a ViT of this size."""
    width, depth, heads = _SIZES[size]
    return {
        "patch_size": patch,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": 4 * width,
    }


def _deit(size: str, image_size: int, top1: float, patch: int = 16) -> Architecture:
    crop = 0.9 if image_size == 224 else 1.0
    return architecture(sizes(size, patch), imagenet(image_size, crop), top1, tag="fb_in1k")


def _deit3(size: str, image_size: int, top1: float, patch: int = 16) -> Architecture:
    found = _deit(size, image_size, top1, patch)
    pretrained = Weights(imagenet(image_size, 1.0), licence="Apache-2.0")
    return with_weights(found, fb_in22k_ft_in1k=pretrained)


def _body(config: Config, block: Table) -> Table:
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    rows += under("patch_embed.proj", "embedding", CONV)
    rows += encoder_blocks(config, "blocks", block)
    return rows + under("norm", "Transformer/encoder_norm", NORM) + under("head", "head", DENSE)


def deit(config: Config) -> Table:
    return _body(config, ENCODER_BLOCK)


def distilled(config: Config) -> Table:
    return deit(config) + rule("dist_token", "dist") + under("head_dist", "head_dist", DENSE)


def deit3(config: Config) -> Table:
    return _body(config, ENCODER_BLOCK + LAYER_SCALE)


def timm_args(config: Config) -> dict[str, Any]:
    width = config["hidden_size"]
    return {
        "patch_size": patch_size(config)[0],
        "embed_dim": width,
        "depth": config["num_layers"],
        "num_heads": config["num_heads"],
        "mlp_ratio": config["mlp_dim"] / width,
    }


def reads_class_token(_: Config, args: Mapping[str, Any]) -> bool:
    return args.get("global_pool", "token") == "token" and args.get("class_token", True)


def _timm(table: Callable[[Config], Table], base: str | None = None) -> Layout:
    """`base`: the model of timm that is made into one of these sizes; None: the family's first."""
    build = Timm(
        timm_args, base=None if base is None else lambda config: base, builds=reads_class_token
    )
    return Layout(table, points=encoder_points(), build=build)


# --- Hugging Face ---------------------------------------------------------------------------------

# Its DeiT always has a distillation token; one without is its ViT with the erf form of GELU.
_EPS = Difference("LayerNorm eps", "1e-6", "1e-12")
_SHIPPED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
_OURS = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
_TEACHER_HEADS = ("cls_classifier.", "distillation_classifier.")


def _hf_body(config: Config) -> Table:
    return hf.encoder(config["num_layers"], config["num_heads"], POSITIONS)


def hf_vit(config: Config) -> Table:
    """The names of transformers' `ViTForImageClassification`."""
    return under("vit", "", _hf_body(config)) + under("classifier", "head", DENSE)


def hf_distilled(config: Config) -> Table:
    """The names of transformers' `DeiTForImageClassificationWithTeacher`."""
    rows = _hf_body(config) + rule("embeddings.distillation_token", "dist")
    return (
        under("deit", "", rows)
        + under("cls_classifier", "head", DENSE)
        + under("distillation_classifier", "head_dist", DENSE)
    )


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    return hf.write_encoder(
        hidden_size=config["hidden_size"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        mlp_dim=config["mlp_dim"],
        patch=patch_size(config),
        image_size=image_size,
        hidden_act=_OURS["hidden_act"],
        layer_norm_eps=_OURS["layer_norm_eps"],
    )


def _points(prefix: str) -> Callable[[Config], Pairs]:
    return lambda config: hf.encoder_points(prefix, config["num_layers"])


_HF_VIT = Layout(
    hf_vit,
    headless=_hf_body,
    respell=hf.respelling("vit."),
    points=_points("vit."),
    differences=lambda config: [_EPS],
    build=HuggingFace(
        "vit",
        ("ViTForImageClassification", "ViTModel"),
        _write_hf,
        hf.read_encoder,
        shipped=_SHIPPED,
        ours=_OURS,
        pooler=True,
        reads={"ViTMAEModel": "vit_mae"},
    ),
)
_HF_DISTILLED = Layout(
    hf_distilled,
    respell=hf.respelling("deit.", heads=_TEACHER_HEADS),
    points=_points("deit."),
    differences=lambda config: [_EPS],
    build=HuggingFace(
        "deit",
        ("DeiTForImageClassificationWithTeacher", None),
        _write_hf,
        hf.read_encoder,
        shipped=_SHIPPED,
        ours=_OURS,
        refuses={
            "DeiTForImageClassification": "it has a distillation token but the class token's head "
            "alone, and DeiT here has both or neither"
        },
    ),
)


def _mae(timm_name: str) -> Weights:
    """The encoder of a masked autoencoder (He et al. 2022, arXiv:2111.06377) computes the same."""
    source = f"timm/{timm_name}.mae"
    return Weights(imagenet(224), num_classes=0, source=source, licence="CC-BY-NC-4.0")


def _only_mae(size: str, patch: int) -> Architecture:
    """A size that is known as such an encoder only; its name in timm is that of another model."""
    weights = {"mae": _mae(f"vit_{size}_patch{patch}_224")}
    return Architecture(sizes(size, patch), weights, timm_name="")


def _dino(size: str, patch: int) -> Architecture:
    """Its name in timm is that of another model, by the tag 'dino'."""
    source = f"timm/vit_{size}_patch{patch}_224.dino"
    weights = Weights(imagenet(224), num_classes=0, source=source, licence="Apache-2.0")
    return Architecture(sizes(size, patch), {"dino": weights}, timm_name="")


FAMILIES = {
    "deit": Family(
        title="DeiT",
        paper="2012.12877",
        model="deit:DeiT",
        computes=ERF,
        architectures={
            "deit_tiny_patch16_224": _deit("tiny", 224, 72.2),
            "deit_small_patch16_224": _deit("small", 224, 79.9),
            "deit_base_patch16_224": with_weights(
                _deit("base", 224, 81.8), mae=_mae("vit_base_patch16_224")
            ),
            "deit_base_patch16_384": _deit("base", 384, 82.9),
            "deit_large_patch16_224": _only_mae("large", 16),
            "deit_huge_patch14_224": _only_mae("huge", 14),
        },
        layouts={"timm": _timm(deit), "hf": _HF_VIT},
        small=always(SMALL),
        **positions(prefix=1),
    ),
    "deit_distilled": Family(
        title="DeiT distilled",
        paper="2012.12877",
        model="deit:DistilledDeiT",
        computes=ERF,
        architectures={
            "deit_tiny_distilled_patch16_224": _deit("tiny", 224, 74.5),
            "deit_small_distilled_patch16_224": _deit("small", 224, 81.2),
            "deit_base_distilled_patch16_224": _deit("base", 224, 83.4),
            "deit_base_distilled_patch16_384": _deit("base", 384, 85.2),
        },
        layouts={"timm": _timm(distilled), "hf": _HF_DISTILLED},
        small=always(SMALL),
        **positions(prefix=2),
    ),
    "deit3": Family(
        title="DeiT III",
        paper="2204.07118",
        model="deit:DeiT3",
        computes=ERF,
        architectures={
            "deit3_small_patch16_224": _deit3("small", 224, 81.4),
            "deit3_small_patch16_384": _deit3("small", 384, 83.4),
            "deit3_base_patch16_224": _deit3("base", 224, 83.8),
            "deit3_base_patch16_384": _deit3("base", 384, 85.0),
            "deit3_large_patch16_224": _deit3("large", 224, 84.9),
            "deit3_large_patch16_384": _deit3("large", 384, 85.8),
            "deit3_huge_patch14_224": _deit3("huge", 224, 85.2, patch=14),
        },
        layouts={"timm": _timm(deit3)},
        small=always(SMALL),
        **positions(prefix=0),
    ),
    "dino": Family(
        title="DINO",
        paper="2104.14294",
        model="deit:DINO",
        computes=ERF,
        architectures={
            "dino_vits16": _dino("small", 16),
            "dino_vits8": _dino("small", 8),
            "dino_vitb16": _dino("base", 16),
            "dino_vitb8": _dino("base", 8),
        },
        layouts={"timm": _timm(deit, base="vit_small_patch16_224"), "hf": _HF_VIT},
        small=always(SMALL),
        resize_method="dino",
        **positions(prefix=1),
    ),
}

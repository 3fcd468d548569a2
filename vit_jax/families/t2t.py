"""T2T-ViT (Yuan et al. 2021, arXiv:2101.11986, Table 1), in the sizes of its code, yitu-opensource.

Top-1: the official README of yitu-opensource/T2T-ViT.

Names: T2T-ViT: the tokens-to-token module's own names, then a Vision Transformer's. The random
features of its performers and its table of sines are tensors that nothing trains.
"""

from vit_jax.families.family import Architecture, Config, Family, Layout, Size
from vit_jax.families.parts import (
    BIAS,
    DENSE,
    ERF_EPS5,
    NORM,
    OUT,
    POSITIONS,
    QKV,
    SMALL,
    always,
    architecture,
    encoder_block,
    imagenet,
    merged,
    positions,
)
from vit_jax.families.rules import Table, rule, under


def _t2t(
    width: int, depth: int, heads: int, ratio: int, top1: float, *, layer: str = "performer"
) -> Architecture:
    config = {
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": ratio * width,
        "token_layer": layer,
        # The official code drops out in its performers, whatever rate the model is built with.
        "token_dropout_rate": 0.1 if layer == "performer" else 0.0,
    }
    return architecture(config, imagenet(224), top1, layout="torch", licence="BSD-3-Clause-Clear")


_BLOCK = encoder_block(under("qkv", "", merged(QKV, bias=False)) + under("proj", "out", OUT))
# A linear layer of overlapping patches is a convolution.
_PROJECTION = rule("weight", "kernel", "o (c h w) -> h w c o") + BIAS
_PATCH_NORM = rule("weight", "scale", "(c h w) -> h w c") + rule("bias", "bias", "(c h w) -> h w c")


def _linear_parts(parts: tuple[str, ...], *, bias: bool) -> Table:
    """One linear layer of patches on their side, several on ours."""
    kernels, biases = (tuple(f"{part}/{leaf}" for part in parts) for leaf in ("kernel", "bias"))
    rows = rule("weight", kernels, "(n o) (c h w) -> n h w c o")
    return rows + (rule("bias", biases, "(n o) -> n o") if bias else [])


_PARTS = ("queries", "keys", "values")
_NORMS = under("norm1", "LayerNorm_0", _PATCH_NORM) + under("norm2", "LayerNorm_1", NORM)
_TOKEN_LAYERS = {
    "performer": _NORMS
    + rule("w", "random_features")
    + under("kqv", "", _linear_parts(("keys", "queries", "values"), bias=True))
    + under("proj", "project", DENSE)
    + under("mlp.0", "MlpBlock_0/Dense_0", DENSE)
    + under("mlp.2", "MlpBlock_0/Dense_1", DENSE),
    "transformer": _NORMS
    + under("attn.qkv", "", _linear_parts(_PARTS, bias=False))
    + under("attn.proj", "project", DENSE)
    + under("mlp.fc1", "MlpBlock_0/Dense_0", DENSE)
    + under("mlp.fc2", "MlpBlock_0/Dense_1", DENSE),
}


def _table(config: Config) -> Table:
    """The names in yitu-opensource/T2T-ViT, class `T2T_ViT`."""
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    layer = _TOKEN_LAYERS[config.get("token_layer", "performer")]
    for i, side in enumerate((7, 3)):
        rows += under(f"tokens_to_token.attention{i + 1}", f"tokens_{i}", layer, h=side, w=side)
    rows += under("tokens_to_token.project", "embedding", _PROJECTION, h=3, w=3)
    for i in range(config["num_layers"]):
        block = f"Transformer/encoderblock_{i}"
        rows += under(f"blocks.{i}", block, _BLOCK, heads=config["num_heads"])
    return rows + under("norm", "Transformer/encoder_norm", NORM) + under("head", "head", DENSE)


def _stride(config: Config) -> Size:
    del config
    return 16, 16


def _frozen(config: Config) -> tuple[str, ...]:
    performers = config.get("token_layer", "performer") == "performer"
    return (POSITIONS, *([r"tokens_\d/random_features"] if performers else []))


def _stem(config: Config) -> tuple[str, ...]:
    del config
    return tuple(f"tokens_0/{part}/kernel" for part in _PARTS)


FAMILIES = {
    "t2t": Family(
        title="T2T-ViT",
        paper="2101.11986",
        model="t2t:T2TViT",
        stem=_stem,
        stem_norms=lambda config: ("tokens_0/LayerNorm_0/scale", "tokens_0/LayerNorm_0/bias"),
        computes=ERF_EPS5,
        architectures={
            "t2t_vit_7": _t2t(256, 7, 4, 2, 71.7),
            "t2t_vit_10": _t2t(256, 10, 4, 2, 75.2),
            "t2t_vit_12": _t2t(256, 12, 4, 2, 76.5),
            "t2t_vit_14": _t2t(384, 14, 6, 3, 81.5),
            "t2t_vit_19": _t2t(448, 19, 7, 3, 81.9),
            "t2t_vit_24": _t2t(512, 24, 8, 3, 82.3),
            "t2t_vit_t_14": _t2t(384, 14, 6, 3, 81.7, layer="transformer"),
            "t2t_vit_t_19": _t2t(448, 19, 7, 3, 82.4, layer="transformer"),
            "t2t_vit_t_24": _t2t(512, 24, 8, 3, 82.6, layer="transformer"),
        },
        layouts={"torch": Layout(_table)},
        small=always({**SMALL, "token_size": 16}),
        reference="torch",
        frozen=_frozen,
        # As the official code's transfer learning does it, whose table starts as sines.
        resize_method="bicubic",
        **positions(prefix=1, stride=_stride),
    ),
}

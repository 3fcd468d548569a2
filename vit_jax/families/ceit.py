"""CeiT (Yuan et al. 2021, arXiv:2103.11816, Table 2), in the sizes of its code, coeusguo/ceit.

Top-1: the official README; of B, that after 150 epochs.

Names: CeiT: a Vision Transformer's names, its stem, its convolutions between blocks and the
attention over layers.
"""

from vit_jax.families.family import Architecture, Config, Family, Layout
from vit_jax.families.parts import (
    ATTENTION,
    BATCH_NORM,
    CONV,
    CONV_NORM,
    DENSE,
    ERF,
    MLP,
    NORM,
    POSITIONS,
    always,
    architecture,
    imagenet,
    positions,
)
from vit_jax.families.rules import Table, rule, under


def _ceit(width: int, heads: int, top1: float, size: int = 224) -> Architecture:
    config = {
        "patch_size": 16,
        "hidden_size": width,
        "num_layers": 12,
        "num_heads": heads,
        "mlp_dim": 4 * width,
    }
    return architecture(config, imagenet(size, 0.875), top1, layout="torch", licence="")


_MLP_PARTS = ("expand", "depthwise", "project")
_BLOCK = (
    under("norm1", "LayerNorm_0", NORM)
    + under("attn", "MultiHeadDotProductAttention_0", ATTENTION)
    + under("norm2", "LayerNorm_1", NORM)
)
_CONV_BLOCK = _BLOCK + [
    row
    for i, part in enumerate(_MLP_PARTS, 1)
    for row in under(f"leff.conv{i}", f"MlpBlock_0/{part}/conv", CONV)
    + under(f"leff.bn{i}", f"MlpBlock_0/{part}/norm", BATCH_NORM)
]
_LAYERWISE = _BLOCK + under("feedforward", "MlpBlock_0", MLP)


def _table(config: Config) -> Table:
    """The names in coeusguo/ceit, class `CeIT`."""
    heads = config["num_heads"]
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    rows += rule("pos_layer_embed", "posembed_layers/pos_embedding")
    rows += under("i2t.backbone", "stem", CONV_NORM) + under("i2t.proj", "embedding", CONV)
    for i in range(config["num_layers"]):
        rows += under(f"blocks.{i}", f"encoderblock_{i}", _CONV_BLOCK, heads=heads)
    rows += under("lca", "layerwise_attention", _LAYERWISE, heads=heads)
    return rows + under("norm", "encoder_norm", NORM) + under("head", "head", DENSE)


FAMILIES = {
    "ceit": Family(
        title="CeiT",
        paper="2103.11816",
        model="ceit:CeiT",
        stem=lambda config: ("stem/conv/kernel",),
        computes=ERF,
        architectures={
            "ceit_tiny_patch16_224": _ceit(192, 3, 76.4),
            "ceit_small_patch16_224": _ceit(384, 6, 82.0),
            "ceit_base_patch16_224": _ceit(768, 12, 82.5),
            "ceit_tiny_patch16_384": _ceit(192, 3, 78.8, 384),
            "ceit_small_patch16_384": _ceit(384, 6, 83.3, 384),
        },
        layouts={"torch": Layout(_table)},
        # The last block's patches are read by nobody: of three, two are trained whole.
        small=always({"hidden_size": 32, "num_layers": 3, "num_heads": 2, "mlp_dim": 32}),
        reference="torch",
        resize_method="bicubic",
        **positions(prefix=1),
    ),
}

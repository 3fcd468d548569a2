"""DeepViT (Zhou et al. 2021, arXiv:2103.11886) in the sizes of its code, zhoudaquan/dvit_repo.

Top-1: the official README, whose numbers of parameters for S and L are not those of the code.

Names: DeepViT: a Vision Transformer's names, re-attention and the convolutions of a stem.
"""

from vit_jax.families.family import Architecture, Config, Family, Layout, Size
from vit_jax.families.parts import (
    ATTENTION,
    BATCH_NORM,
    BIAS,
    CONV,
    DENSE,
    ENCODER_BLOCK,
    ERF,
    KERNEL,
    NORM,
    POSITIONS,
    always,
    architecture,
    encoder_block,
    imagenet,
    positions,
)
from vit_jax.families.rules import Table, rule, under

_HALF = (0.5, 0.5, 0.5)


def _deepvit(width: int, depth: int, top1: float, **fields: int | float | bool) -> Architecture:
    config = {
        "patch_size": 16,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": 12,
        "mlp_dim": 3 * width,
        "reattention_layers": depth,
        **fields,
    }
    images = imagenet(224, mean=_HALF, std=_HALF)
    return architecture(config, images, top1, layout="torch", licence="")


_REATTENTION = (
    rule("reatten_matrix.weight", "weights_mix/kernel", "o i 1 1 -> i o")
    + under("reatten_matrix", "weights_mix", BIAS)
    + under("var_norm", "weights_norm", BATCH_NORM)
)
_REATTENTION_BLOCK = encoder_block(ATTENTION + _REATTENTION)


def _table(config: Config) -> Table:
    """The names in zhoudaquan/dvit_repo, class `DeepVisionTransformer`."""
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    if config.get("stem_features") is not None:
        for i in range(2):
            rows += under(f"patch_embed.conv{i + 1}", f"stem_{i}/conv", KERNEL)
            rows += under(f"patch_embed.bn{i + 1}", f"stem_{i}/norm", BATCH_NORM)
    rows += under("patch_embed.proj", "embedding", CONV)
    depth = config["num_layers"]
    for i in range(depth):
        plain = i < depth - config["reattention_layers"]
        block = ENCODER_BLOCK if plain else _REATTENTION_BLOCK
        rows += under(f"blocks.{i}", f"encoderblock_{i}", block, heads=config["num_heads"])
    return rows + under("norm", "encoder_norm", NORM) + under("head", "head", DENSE)


def _stride(config: Config) -> Size:
    return config["patch_size"], config["patch_size"]


FAMILIES = {
    "deepvit": Family(
        title="DeepViT",
        paper="2103.11886",
        model="deepvit:DeepViT",
        computes=ERF,
        architectures={
            "deepvit_patch16_224_re_attn_16b": _deepvit(384, 16, 79.1),
            "deepvit_patch16_224_re_attn_24b": _deepvit(384, 24, 79.99),
            "deepvit_patch16_224_re_attn_32b": _deepvit(384, 32, 80.9),
            "deepvit_S": _deepvit(
                396,
                16,
                82.3,
                reattention_layers=5,
                reattention_scaled=True,
                stem_features=64,
                stream_scale=0.5,
            ),
            "deepvit_L": _deepvit(
                420, 32, 83.1, reattention_layers=12, stem_features=64, stream_scale=0.5
            ),
        },
        layouts={"torch": Layout(_table)},
        small=always(
            {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 2,
                "mlp_dim": 32,
                "reattention_layers": 1,
            }
        ),
        reference="torch",
        **positions(prefix=1, stride=_stride),
    ),
}

"""What several families share: tables of layers, PyTorch's names to ours, and whole fields."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    Edit,
    Edits,
    Pairs,
    Shapes,
    Size,
    Weights,
)
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import Table, rule, under

POSITIONS = "posembed_input/pos_embedding"  # our name of a learned table of positions
# `Family.computes` of most models: what a file of tensors cannot tell.
ERF = "GELU in its erf form, LayerNorm eps 1e-6"
ERF_EPS5 = "GELU in its erf form, LayerNorm eps 1e-5"
COMPUTES = "GELU in its tanh form, LayerNorm eps 1e-6"  # Google's models
GELU = Difference("GELU", "tanh form", "erf form")  # where a library has another default
# timm and transformers compute rotary positions in float32 whatever the type of the model.
ANGLES = Difference("angles of rotary positions", "in the type of the model", "in float32")
TANH = "gelu_tanh"  # what timm calls the activation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
QKV = ("query", "key", "value")

BIAS = rule("bias", "bias")
NORM = rule("weight", "scale") + BIAS
DENSE = rule("weight", "kernel", "o i -> i o") + BIAS
KERNEL = rule("weight", "kernel", "o i h w -> h w i o")
CONV = KERNEL + BIAS

HEADS = rule("weight", "kernel", "(heads d) c -> c heads d") + rule(
    "bias", "bias", "(heads d) -> heads d"
)
OUT = rule("weight", "kernel", "c (heads d) -> heads d c") + BIAS


def merged(parts: tuple[str, ...], *, bias: bool = True) -> Table:
    """One linear layer on their side, several on ours."""
    kernels, biases = (tuple(f"{x}/{leaf}" for x in parts) for leaf in ("kernel", "bias"))
    rows = rule("weight", kernels, "(n heads d) c -> n c heads d")
    return rows + (rule("bias", biases, "(n heads d) -> n heads d") if bias else [])


ATTENTION = under("qkv", "", merged(QKV)) + under("proj", "out", OUT)
MLP = under("fc1", "Dense_0", DENSE) + under("fc2", "Dense_1", DENSE)


def encoder_block(attention: Table, mlp: Table = MLP) -> Table:
    """The pre-norm block, as most of timm's models call its parts."""
    return (
        under("norm1", "LayerNorm_0", NORM)
        + under("attn", "MultiHeadDotProductAttention_0", attention)
        + under("norm2", "LayerNorm_1", NORM)
        + under("mlp", "MlpBlock_0", mlp)
    )


def encoder_blocks(config: Config, theirs: str, block: Table) -> Table:
    """Every block of our encoder; `theirs` is what stands before its number."""
    return [
        row
        for i in range(config["num_layers"])
        for row in under(
            f"{theirs}.{i}", f"Transformer/encoderblock_{i}", block, heads=config["num_heads"]
        )
    ]


def gated_mlp(both: str, out: str) -> Table:
    """A gated MLP whose gate and whose first layer are one linear layer on their side, in turn."""
    kernels, biases = (tuple(f"{x}/{leaf}" for x in _GATED) for leaf in ("kernel", "bias"))
    rows = rule(f"{both}.weight", kernels, "(n h) d -> n d h")
    rows += rule(f"{both}.bias", biases, "(n h) -> n h")
    return rows + under(out, "Dense_1", DENSE)


_GATED = ("gate", "Dense_0")
ENCODER_BLOCK = encoder_block(ATTENTION)
LAYER_SCALE = rule("ls1.gamma", "residual_0/gamma") + rule("ls2.gamma", "residual_1/gamma")
# The same as CaiT, BEiT and EVA call it, and timm for DINOv3.
GAMMAS = rule("gamma_1", "residual_0/gamma") + rule("gamma_2", "residual_1/gamma")
LINEAR = rule("weight", "kernel", "o i -> i o")  # without a bias

BATCH_NORM = (
    NORM + rule("running_mean", "mean", statistic=True) + rule("running_var", "var", statistic=True)
)
CONV_NORM = under("conv", "conv", KERNEL) + under("bn", "norm", BATCH_NORM)


def conv_norms(names: Mapping[str, str]) -> Table:
    """Convolutions and norms side by side, as in torchvision's ResNets; `names`: number, ours."""
    rows = []
    for theirs, ours in names.items():
        rows += under(f"conv{theirs}", f"{ours}/conv", KERNEL)
        rows += under(f"bn{theirs}", f"{ours}/norm", BATCH_NORM)
    return rows


SHORTCUT = under("downsample.0", "shortcut/conv", KERNEL)
SHORTCUT += under("downsample.1", "shortcut/norm", BATCH_NORM)

# Families whose stages are a pyramid of maps.
PATCH_EMBEDDING = under("proj", "conv", CONV) + under("norm", "norm", NORM)
# Attention whose keys and values are fewer than its queries.
REDUCED_ATTENTION = (
    under("q", "query", HEADS)
    + under("kv", "", merged(("key", "value")))
    + under("proj", "out", OUT)
)
REDUCTION = under("sr", "reduction/conv", CONV) + under("norm", "reduction/norm", NORM)


def imagenet(
    size: int,
    crop: float = 0.9,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    method: Literal["bilinear", "bicubic"] = "bicubic",
    resize: Literal["squash", "shortest"] = "shortest",
) -> Preprocess:
    """timm's way: the shorter side resized with antialiasing, a central crop."""
    return Preprocess(size, crop, resize, method, antialias=True, mean=mean, std=std)


def architecture(
    config: Config,
    preprocess: Preprocess,
    top1: float | None = None,
    *,
    tag: str = "",
    num_classes: int = 1000,
    layout: str = "timm",
    source: str = "",
    licence: str = "Apache-2.0",
) -> Architecture:
    """An architecture of which one checkpoint was published; arguments as of `Weights`.

    Args:
      tag: What timm calls the weights.
    """
    weights = Weights(preprocess, num_classes, top1, source, layout, licence)
    return Architecture(config, {tag: weights})


def with_weights(known: Architecture, **others: Weights) -> Architecture:
    """The architecture with further checkpoints, by tag."""
    return dataclasses.replace(known, weights={**known.weights, **others})


def with_mask_token(shapes: Shapes, _: Size) -> Edit:
    """The field `after_reading` of timm's layout, for a model that has a mask token."""
    width = shapes["cls"][-1]
    step = "timm has no mask token, which only pretraining uses: it is zero"
    return Edit(step, added={"mask_token": lambda: np.zeros((1, 1, width), np.float32)})


def without_mask_token(config: Config, ours: Mapping[str, np.ndarray], _: Size | None) -> Edit:
    """The field `before_writing` of the same."""
    del config, ours
    return Edit("the mask token, which timm does not have, is left out", dropped=("mask_token",))


def mlp_ratio(hidden: int, width: int) -> float:
    """The `mlp_ratio` from which timm's `int(width * mlp_ratio)` gives `hidden` back."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def always(small: Mapping[str, Any]) -> Callable[[Config], Mapping[str, Any]]:
    """The field `small` of a `Family` whose tiny models all have the same sizes."""
    return lambda config: small


# `Family.small` of models whose tokens keep one resolution, and of pyramids.
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}
SMALL_STAGES = {
    "depths": (2, 1, 1, 1),
    "hidden_sizes": (16, 32, 64, 128),
    "num_heads": (1, 2, 4, 8),
}


def patch_size(config: Config) -> Size:
    """(height, width) of a patch in pixels: `patch_size` is a side, or both."""
    size = config["patch_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def positions(
    prefix: int | Callable[[Config], int],
    *,
    stride: Callable[[Config], Size] = patch_size,
    padded: bool = False,
    name: str = POSITIONS,
    present: Callable[[Config], bool] = lambda config: True,
) -> dict[str, Any]:
    """The fields of a `Family` that follow from one learned table of positions.

    Args:
      prefix: Tokens that have a position and are no patches; or config to their number.
      stride: Config to the (height, width) in pixels from one token to the next.
      padded: Whether what is left at the border makes a token too.
      name: Our name of the table [1, prefix + patches, D].
      present: Config to whether it has the table; without one it takes images of any size.
    """

    def before_patches(config: Config) -> int:
        return prefix(config) if callable(prefix) else prefix

    def grid(config: Config, size: Size) -> Size:
        (height, width), (rows, columns) = size, stride(config)
        if padded:
            return -(-height // rows), -(-width // columns)
        return height // rows, width // columns

    def num_patches(config: Config, shapes: Shapes) -> int:
        return shapes[name][1] - before_patches(config) if present(config) else 0

    def image_size(config: Config, shapes: Shapes) -> Size | None:
        if not present(config):
            return None
        rows, columns = square(num_patches(config, shapes), "the weights'")
        height, width = stride(config)
        return rows * height, columns * width

    def resize(config: Config, old: Size, new: Size, method: str) -> Edits:
        if not present(config):
            return {}
        before, after, first = grid(config, old), grid(config, new), before_patches(config)
        return {name: lambda x: resize_posembed(x, before, after, first, method)}

    fields = {"image_size": image_size, "resize": resize}
    if padded:  # an image need not be whole patches
        return fields
    return {**fields, "num_patches": num_patches, "stride": stride}


def encoder_points(
    *,
    embedding: tuple[str, str] = ("embedding", "patch_embed"),
    blocks: str = "blocks",
    norm: str | None = "norm",
) -> Callable[[Config], Pairs]:
    """The field `points` of a `Layout` for our encoder; arguments are the reference's names."""

    def points(config: Config) -> Pairs:
        depth = config["num_layers"]
        found = [(f"Transformer/encoderblock_{i}", f"{blocks}.{i}") for i in range(depth)]
        end = [] if norm is None else [("Transformer/encoder_norm", norm)]
        return [embedding, *found, *end]

    return points


def block_points(
    theirs: str, *, part: str = "", ends: tuple[tuple[str, str], ...] = ()
) -> Callable[[Config], Pairs]:
    """The field `points` of a `Layout`: every block of every stage.

    Args:
      theirs: The reference's block j of stage i, as a template of {i} and {j}.
      part: The module inside our block, where `theirs` is not the whole of one.
      ends: Pairs after the blocks.
    """

    def points(config: Config) -> Pairs:
        blocks = [(i, j) for i, depth in enumerate(config["depths"]) for j in range(depth)]
        found = [(f"stage_{i}/encoderblock_{j}{part}", theirs.format(i=i, j=j)) for i, j in blocks]
        return [*found, *ends]

    return points

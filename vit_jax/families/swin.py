"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030, section 3.3).

Top-1: the official README of microsoft/Swin-Transformer, pretrained on ImageNet-1k where it has
that, else (large) on ImageNet-22k.

Names: Swin Transformer in timm, which moved `downsample` to the start of the next stage, and in
microsoft/Swin-Transformer.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families import hf
from vit_jax.families.family import (
    Architecture,
    Config,
    Edits,
    Family,
    HuggingFace,
    Layout,
    Shapes,
    Size,
    Timm,
    Weights,
)
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ENCODER_BLOCK,
    ERF_EPS5,
    HEADS,
    LINEAR,
    NORM,
    OUT,
    PATCH_EMBEDDING,
    QKV,
    always,
    block_points,
    imagenet,
)
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import Table, rule, under
from vit_jax.layers.relative import MASKED, relative_position_index, shifted_regions

# Width of the first stage, depths, heads (ibid.).
_SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def _swin(size: str, window: int = 7, **top1: float) -> Architecture:
    """`top1`: by timm's tag of the weights, the first of which is the default."""
    width, depths, heads = _SIZES[size]
    config = {
        "hidden_size": width,
        "depths": depths,
        "num_heads": heads,
        "window_size": window,
        "patch_size": 4,
    }
    image_size, crop = (224, 0.9) if window == 7 else (384, 1.0)
    images = imagenet(image_size, crop)
    weights = {tag: Weights(images, top1=x, licence="MIT") for tag, x in top1.items()}
    weights["ms_in22k"] = Weights(images, num_classes=21_841, licence="MIT")
    return Architecture(config, weights)


_BIAS = "MultiHeadDotProductAttention_0/relative_position_bias"
BLOCK = ENCODER_BLOCK + rule("attn.relative_position_bias_table", _BIAS)
MERGING = under("norm", "norm", NORM) + under("reduction", "reduction", LINEAR)


def swin(config: Config) -> Table:
    return _body(config, merging_of=lambda i: i) + under("head.fc", "head", DENSE)


def _torch(config: Config) -> Table:
    """The names in microsoft/Swin-Transformer, models/swin_transformer.py."""
    return _body(config, merging_of=lambda i: i - 1) + under("head", "head", DENSE)


def _body(config: Config, merging_of: Callable[[int], int]) -> Table:
    """`merging_of`: the stage of theirs that holds what merges cells before stage i of ours."""
    rows = under("patch_embed", "embedding", PATCH_EMBEDDING)
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        if i > 0:
            rows += under(f"layers.{merging_of(i)}.downsample", f"stage_{i}/merging", MERGING)
        for j in range(depth):
            ours = f"stage_{i}/encoderblock_{j}"
            rows += under(f"layers.{i}.blocks.{j}", ours, BLOCK, heads=heads)
    return rows + under("norm", "encoder_norm", NORM)


# Indices and masks that the official files hold.
_BUFFERS = (r".*\.relative_position_index", r".*\.attn_mask")


def _indices_and_masks(config: Config, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the official code makes for the square image that the tables of biases are for.

    A model of full windows everywhere has the tensors of larger images too: its masks are those of
    the smallest.
    """
    shapes = {name: np.shape(x) for name, x in tensors.items() if name.endswith(_BIAS)}
    side = _image_size(config, shapes)[0] // config["patch_size"]
    found = {}
    for i, depth in enumerate(config["depths"]):
        window = min(side, config["window_size"])
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}.attn"
            found[f"{block}.relative_position_index"] = relative_position_index((window, window))
            if j % 2 and side > window:
                shift = window // 2
                regions = shifted_regions((side, side), (window, window), (shift, shift))
                apart = regions[:, None, :] != regions[:, :, None]
                mask = np.where(apart, MASKED, 0.0).astype(np.float32)
                found[f"layers.{i}.blocks.{j}.attn_mask"] = mask
        side = -(-side // 2)
    return found


def timm_args(config: Config) -> dict[str, Any]:
    return {
        "patch_size": config["patch_size"],
        "embed_dim": config["hidden_size"],
        "depths": tuple(config["depths"]),
        "num_heads": tuple(config["num_heads"]),
        "window_size": config["window_size"],
    }


def windows(config: Config, size: Size) -> list[Size]:
    """The windows of each stage for an image of that size: no larger than the stage's map."""
    largest = config["window_size"]
    maps = [(side // config["patch_size"]) for side in size]
    found = []
    for _ in config["depths"]:
        found.append((min(maps[0], largest), min(maps[1], largest)))
        maps = [-(-side // 2) for side in maps]
    return found


def resize_bias(table: np.ndarray, old: Size, new: Size, method: str) -> np.ndarray:
    """Biases of relative positions [(2 height - 1) (2 width - 1), heads] for another window.

    Args:
      old, new: Windows (height, width).
      method: 'timm' keeps what is said of near cells (`resize_posembed`'s 'geometric'), 'official'
        stretches the table ('bicubic').
    """
    before, after = ((2 * height - 1, 2 * width - 1) for height, width in (old, new))
    method = {"timm": "geometric", "official": "bicubic"}[method]
    return resize_posembed(table[None], before, after, 0, method)[0]


def _image_size(config: Config, shapes: Shapes) -> Size:
    """A square image that has these windows; where all have their full size, larger ones do too."""
    side = config["window_size"] * config["patch_size"] * 2 ** (len(config["depths"]) - 1)
    for i in reversed(range(len(config["depths"]))):
        distances = shapes[f"stage_{i}/encoderblock_0/{_BIAS}"][0]
        window = (square(distances, "the bias table's")[0] + 1) // 2
        if window < config["window_size"]:
            side = window * config["patch_size"] * 2**i
    return side, side


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    edits: Edits = {}
    stages = zip(config["depths"], windows(config, old), windows(config, new), strict=True)
    for i, (depth, before, after) in enumerate(stages):
        edit = functools.partial(resize_bias, old=before, new=after, method=method)
        edits |= {f"stage_{i}/encoderblock_{j}/{_BIAS}": edit for j in range(depth)}
    return edits


# --- Hugging Face ---------------------------------------------------------------------------------

_HF_ATTENTION = [row for x in QKV for row in under(f"self.{x}", x, HEADS)]
_HF_ATTENTION += rule("self.relative_position_bias_table", "relative_position_bias")
_HF_ATTENTION += under("output.dense", "out", OUT)
_BLOCK_OF = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_HF_LIVE = tuple(
    (_BLOCK_OF + live, rf"encoder.layers.\1.blocks.\2.{file}")
    for live, file in (
        (r"attention\.q_proj\.", "attention.self.query."),
        (r"attention\.k_proj\.", "attention.self.key."),
        (r"attention\.v_proj\.", "attention.self.value."),
        (r"attention\.o_proj\.", "attention.output.dense."),
        (r"attention\.relative_position_bias\.", "attention.self."),
        (r"mlp\.fc1\.", "intermediate.dense."),
        (r"mlp\.fc2\.", "output.dense."),
    )
)
_NUMERICS = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}


def _hf_body(config: Config) -> Table:
    """`SwinModel`, which merges at the end of a stage."""
    embedding = under("patch_embeddings.projection", "conv", CONV) + under("norm", "norm", NORM)
    rows = under("embeddings", "embedding", embedding)
    block = hf.block(_HF_ATTENTION)
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        stage = f"encoder.layers.{i}"
        if i > 0:
            merging = f"encoder.layers.{i - 1}.downsample"
            rows += under(merging, f"stage_{i}/merging", MERGING)
        for j in range(depth):
            rows += under(f"{stage}.blocks.{j}", f"stage_{i}/encoderblock_{j}", block, heads=heads)
    return rows + under("layernorm", "encoder_norm", NORM)


def swin_hf(config: Config) -> Table:
    """The names of transformers' `SwinForImageClassification`."""
    return under("swin", "", _hf_body(config)) + under("classifier", "head", DENSE)


def _same_in_hf(config: Config, image_size: Size) -> bool:
    """Whether transformers computes the same for images of that size.

    Its windows are always whole, it shifts both directions or none, and it pads a map before it
    rolls it, ours afterwards.
    """
    patch, window = config["patch_size"], config["window_size"]
    if any(side % patch for side in image_size):
        return False
    rows, columns = (side // patch for side in image_size)
    for depth in config["depths"]:
        if min(rows, columns) < window:
            return False
        shifts = depth > 1 and max(rows, columns) > window
        if shifts and (min(rows, columns) == window or rows % window or columns % window):
            return False
        rows, columns = -(-rows // 2), -(-columns // 2)
    return True


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    if not _same_in_hf(config, image_size):
        side = config["patch_size"] * config["window_size"] * 2 ** (len(config["depths"]) - 1)
        raise UserError(
            f"for images of {image_size[0]}×{image_size[1]} Hugging Face's Swin computes otherwise "
            f"than the official code: not all its maps are whole windows. Resize the weights to "
            f"multiples of {side} pixels"
        )
    return {
        "image_size": hf.one_or_two(image_size),
        "patch_size": config["patch_size"],
        "embed_dim": config["hidden_size"],
        "depths": list(config["depths"]),
        "num_heads": list(config["num_heads"]),
        "window_size": config["window_size"],
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "use_absolute_embeddings": False,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        **_NUMERICS,
    }


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": fields["embed_dim"],
        "depths": tuple(fields["depths"]),
        "num_heads": tuple(fields["num_heads"]),
        "window_size": fields["window_size"],
        "patch_size": hf.square(fields["patch_size"]),
    }


FAMILIES = {
    "swin": Family(
        title="Swin",
        stem=lambda config: ("embedding/conv/kernel",),
        paper="2103.14030",
        model="swin:SwinTransformer",
        computes=ERF_EPS5,
        architectures={
            "swin_tiny_patch4_window7_224": _swin("tiny", ms_in1k=81.2, ms_in22k_ft_in1k=80.9),
            "swin_small_patch4_window7_224": _swin("small", ms_in1k=83.2, ms_in22k_ft_in1k=83.2),
            "swin_base_patch4_window7_224": _swin("base", ms_in1k=83.5, ms_in22k_ft_in1k=85.2),
            "swin_base_patch4_window12_384": _swin("base", 12, ms_in1k=84.5, ms_in22k_ft_in1k=86.4),
            "swin_large_patch4_window7_224": _swin("large", ms_in22k_ft_in1k=86.3),
            "swin_large_patch4_window12_384": _swin("large", 12, ms_in22k_ft_in1k=87.3),
        },
        layouts={
            "timm": Layout(
                swin,
                ignore=_BUFFERS,
                # The MLP's output is the one that timm gives as tokens.
                points=block_points("layers.{i}.blocks.{j}.mlp", part="/MlpBlock_0"),
                build=Timm(timm_args),
            ),
            "torch": Layout(_torch, ignore=_BUFFERS, buffers=_indices_and_masks),
            "hf": Layout(
                swin_hf,
                headless=_hf_body,
                respell=hf.respelling("swin.", _HF_LIVE),
                ignore=(r".*\.relative_position_index",),
                points=block_points("swin.encoder.layers.{i}.blocks.{j}"),
                build=HuggingFace(
                    "swin",
                    ("SwinForImageClassification", "SwinModel"),
                    _write_hf,
                    _read_hf,
                    shipped=_NUMERICS,
                    ours=_NUMERICS,
                ),
            ),
        },
        small=always(
            {
                "hidden_size": 16,
                "depths": (2, 1, 1, 1),
                "num_heads": (1, 2, 4, 8),
                "window_size": 4,
            }
        ),
        image_size=_image_size,
        resize=_resize,
    ),
}

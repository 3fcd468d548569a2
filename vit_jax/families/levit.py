"""LeViT (Graham et al. 2021, arXiv:2104.01136, Table 1).

Top-1: the official README of facebookresearch/LeViT.

Names: LeViT in timm, with linear layers or with 1×1 convolutions in their place; and in
facebookresearch/LeViT, which counts attention, MLPs and downsampling as blocks of one sequence.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
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
)
from vit_jax.families.parts import (
    BATCH_NORM,
    DENSE,
    KERNEL,
    LINEAR,
    always,
    architecture,
    imagenet,
)
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import Table, rule, under

# Widths and heads of the three stages, blocks in each, width of a key, top-1.
_SIZES = {
    "128s": ((128, 256, 384), (4, 6, 8), (2, 3, 4), 16, 76.6),
    "128": ((128, 256, 384), (4, 8, 12), (4, 4, 4), 16, 78.6),
    "192": ((192, 288, 384), (3, 5, 6), (4, 4, 4), 32, 80.0),
    "256": ((256, 384, 512), (4, 6, 8), (4, 4, 4), 32, 81.6),
    "384": ((384, 512, 768), (6, 9, 12), (4, 4, 4), 32, 82.6),
}


def _levit(size: str) -> Architecture:
    widths, heads, depths, key_dim, top1 = _SIZES[size]
    config = {"hidden_sizes": widths, "num_heads": heads, "depths": depths, "key_dim": key_dim}
    return architecture(config, imagenet(224), top1, tag="fb_dist_in1k")


_SMALL = {
    "hidden_sizes": (32, 48, 64),
    "num_heads": (2, 3, 4),
    "depths": (1, 1, 1),
    "key_dim": 8,
}


BIASES = rule("attention_biases", "attention_biases")
_STRIDE = 16  # of the stem
_ATTENTION = "MultiHeadDotProductAttention_0"


def _table(config: Config, kernel: str) -> Table:
    dense_norm = under("linear", "dense", rule("weight", "kernel", kernel))
    dense_norm += under("bn", "norm", BATCH_NORM)
    mlp = under("ln1", "Dense_0", dense_norm) + under("ln2", "Dense_1", dense_norm)
    out = BIASES + under("proj.ln", "out", dense_norm)
    block = under("attn", _ATTENTION, under("qkv", "qkv", dense_norm) + out)
    block += under("mlp", "MlpBlock_0", mlp)
    shrink = under("kv", "kv", dense_norm) + under("q.ln", "query", dense_norm) + out
    shrink = under("attn_downsample", "downsample", shrink) + under("mlp", "downsample_mlp", mlp)

    conv_norm = under("linear", "conv", KERNEL) + under("bn", "norm", BATCH_NORM)
    rows = [r for i in range(4) for r in under(f"stem.conv{i + 1}", f"stem_{i}", conv_norm)]
    for i, depth in enumerate(config["depths"]):
        if i > 0:
            rows += under(f"stages.{i}.downsample", f"stage_{i}", shrink)
        for j in range(depth):
            rows += under(f"stages.{i}.blocks.{j}", f"stage_{i}/encoderblock_{j}", block)
    for head in ("head", "head_dist"):
        rows += under(f"{head}.bn", f"{head}_norm", BATCH_NORM)
        rows += under(f"{head}.linear", head, DENSE)
    return rows


def timm_args(config: Config) -> dict[str, Any]:
    return {
        "embed_dim": tuple(config["hidden_sizes"]),
        "num_heads": tuple(config["num_heads"]),
        "depth": tuple(config["depths"]),
        "key_dim": config["key_dim"],
    }


def resize_biases(table: np.ndarray, old: Size, new: Size, method: str) -> np.ndarray:
    """Biases [heads, rows · columns] of distances, for another number of rows and columns.

    Nobody has published a rule. Here the table is mirrored to offsets of either sign, resized as
    `resize_posembed` does, and cut back: like Swin's tables, and distance 0 stays where it is.
    """
    rows, columns = old
    mirrored = table.reshape(-1, rows, columns)
    mirrored = np.pad(mirrored, ((0, 0), (rows - 1, 0), (columns - 1, 0)), mode="reflect")
    # One cell has distance 0 alone, which is not the corner that 'official' would align.
    cells = (max(new[0], 2), max(new[1], 2))
    before, after = ((2 * size[0] - 1, 2 * size[1] - 1) for size in (old, cells))
    tokens = mirrored.reshape(len(table), -1).T[None]
    resized = resize_posembed(tokens, before, after, 0, method)[0].T
    resized = resized.reshape(-1, *after)[:, cells[0] - 1 :, cells[1] - 1 :]
    return resized[:, : new[0], : new[1]].reshape(len(table), -1)


def _image_size(config: Config, shapes: Shapes) -> Size:
    del config
    name = f"stage_0/encoderblock_0/{_ATTENTION}/attention_biases"
    rows, columns = square(shapes[name][1], "the weights'")
    return rows * _STRIDE, columns * _STRIDE


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    edits: Edits = {}
    before, after = _shrunk(old, _STRIDE), _shrunk(new, _STRIDE)
    for i, depth in enumerate(config["depths"]):
        edit = functools.partial(resize_biases, old=before, new=after, method=method)
        if i > 0:
            edits[f"stage_{i}/downsample/attention_biases"] = edit
            before, after = _shrunk(before, 2), _shrunk(after, 2)
            edit = functools.partial(resize_biases, old=before, new=after, method=method)
        for j in range(depth):
            edits[f"stage_{i}/encoderblock_{j}/{_ATTENTION}/attention_biases"] = edit
    return edits


def _shrunk(size: Size, stride: int) -> Size:
    return -(-size[0] // stride), -(-size[1] // stride)


def _points(config: Config) -> list[tuple[str, str]]:
    points = [("stem_3", "stem")]
    for i, depth in enumerate(config["depths"]):
        if i > 0:
            points.append((f"stage_{i}/downsample", f"stages.{i}.downsample.attn_downsample"))
        blocks = range(depth)
        points += [(f"stage_{i}/encoderblock_{j}", f"stages.{i}.blocks.{j}") for j in blocks]
    return points


# --- official -------------------------------------------------------------------------------------


def _blocks(config: Config) -> Iterator[tuple[str, str]]:
    """The kind of every block of the official sequence, and its name here."""
    for i, depth in enumerate(config["depths"]):
        if i > 0:
            yield "downsample", f"stage_{i}/downsample"
            yield "mlp", f"stage_{i}/downsample_mlp"
        for j in range(depth):
            yield "attention", f"stage_{i}/encoderblock_{j}/{_ATTENTION}"
            yield "mlp", f"stage_{i}/encoderblock_{j}/MlpBlock_0"


def _torch(config: Config) -> Table:
    """The names in facebookresearch/LeViT, levit.py."""
    dense_norm = under("c", "dense", LINEAR) + under("bn", "norm", BATCH_NORM)
    out = BIASES + under("proj.1", "out", dense_norm)
    kinds = {
        "attention": under("m", "", under("qkv", "qkv", dense_norm) + out),
        "mlp": under("m.0", "Dense_0", dense_norm) + under("m.2", "Dense_1", dense_norm),
        "downsample": under("kv", "kv", dense_norm) + under("q.1", "query", dense_norm) + out,
    }
    conv_norm = under("c", "conv", KERNEL) + under("bn", "norm", BATCH_NORM)
    rows = [r for i in range(4) for r in under(f"patch_embed.{2 * i}", f"stem_{i}", conv_norm)]
    for k, (kind, ours) in enumerate(_blocks(config)):
        rows += under(f"blocks.{k}", ours, kinds[kind])
    for head in ("head", "head_dist"):
        rows += under(f"{head}.bn", f"{head}_norm", BATCH_NORM) + under(f"{head}.l", head, DENSE)
    return rows


def _distance_indices(config: Config, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`attention_bias_idxs`: the distance of each pair of a query and a key, row by row.

    Raises UserError for images that are not square, which the official code does not take.
    """
    found = {}
    for k, (kind, ours) in enumerate(_blocks(config)):
        if kind == "mlp":
            continue
        distances = np.shape(tensors[f"{ours}/attention_biases"])[1]
        side = math.isqrt(distances)
        if side**2 != distances:
            raise UserError(
                "the official LeViT takes square images; these weights have biases for "
                f"{distances} distances, which are those of no square. Resize the weights first"
            )
        step, inner = (2, "") if kind == "downsample" else (1, "m.")
        cells = np.arange(side)
        apart = np.abs(cells[::step, None] - cells[None])
        index = apart[:, None, :, None] * side + apart[None, :, None, :]
        queries = len(apart) ** 2
        found[f"blocks.{k}.{inner}attention_bias_idxs"] = index.reshape(queries, side**2)
    return found


# --- Hugging Face ---------------------------------------------------------------------------------

_HF_HEADS = {"head": "classifier", "head_dist": "classifier_distill"}


def _hf_body(config: Config) -> Table:
    """`LevitModel`, which counts attention and MLPs together, and shrinks at a stage's end."""
    norm = under("batch_norm", "norm", BATCH_NORM)
    dense_norm = under("linear", "dense", LINEAR) + norm
    out = BIASES + under("projection", "out", dense_norm)
    attention = under("module", _ATTENTION, under("queries_keys_values", "qkv", dense_norm) + out)
    mlp = under("module.linear_up", "Dense_0", dense_norm)
    mlp += under("module.linear_down", "Dense_1", dense_norm)
    shrink = under("keys_values", "kv", dense_norm) + under("queries", "query", dense_norm) + out

    conv_norm = under("convolution", "conv", KERNEL) + norm
    rows = []
    for i in range(4):
        rows += under(f"patch_embeddings.embedding_layer_{i + 1}", f"stem_{i}", conv_norm)
    for i, depth in enumerate(config["depths"]):
        layers = f"encoder.stages.{i}.layers"
        for j in range(depth):
            ours = f"stage_{i}/encoderblock_{j}"
            rows += under(f"{layers}.{2 * j}", ours, attention)
            rows += under(f"{layers}.{2 * j + 1}", f"{ours}/MlpBlock_0", mlp)
        if i + 1 < len(config["depths"]):
            rows += under(f"{layers}.{2 * depth}", f"stage_{i + 1}/downsample", shrink)
            rows += under(f"{layers}.{2 * depth + 1}", f"stage_{i + 1}/downsample_mlp", mlp)
    return rows


def _hf(config: Config) -> Table:
    """The names of transformers' `LevitForImageClassificationWithTeacher`."""
    rows = under("levit", "", _hf_body(config))
    for ours, theirs in _HF_HEADS.items():
        rows += under(f"{theirs}.batch_norm", f"{ours}_norm", BATCH_NORM)
        rows += under(f"{theirs}.linear", ours, DENSE)
    return rows


def _hf_points(config: Config) -> list[tuple[str, str]]:
    points = [("stem_3", "levit.patch_embeddings.embedding_layer_4")]
    for i, depth in enumerate(config["depths"]):
        layers = f"levit.encoder.stages.{i}.layers"
        blocks = range(depth)
        points += [(f"stage_{i}/encoderblock_{j}", f"{layers}.{2 * j + 1}") for j in blocks]
        if i + 1 < len(config["depths"]):
            points.append((f"stage_{i + 1}/downsample", f"{layers}.{2 * depth}"))
    return points


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    rows, columns = image_size
    if rows != columns or rows % _STRIDE:
        raise UserError(
            f"Hugging Face's LeViT takes square images of multiples of {_STRIDE} pixels; got "
            f"{rows}×{columns}"
        )
    if len(config["depths"]) != 3:
        raise UserError(f"Hugging Face's LeViT has three stages; got {len(config['depths'])}")
    return {
        "image_size": rows,
        "kernel_size": 3,
        "stride": 2,
        "padding": 1,
        "patch_size": _STRIDE,
        "hidden_sizes": list(config["hidden_sizes"]),
        "num_attention_heads": list(config["num_heads"]),
        "depths": list(config["depths"]),
        "key_dim": [config["key_dim"]] * 3,
        "mlp_ratio": [2] * 3,
        "attention_ratio": [2] * 3,
        "drop_path_rate": 0,
    }


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    widths = set(fields["key_dim"])
    if len(widths) != 1:
        raise ValueError(f"one key_dim for all stages, but {sorted(widths)}")
    return {
        "hidden_sizes": tuple(fields["hidden_sizes"]),
        "num_heads": tuple(fields["num_attention_heads"]),
        "depths": tuple(fields["depths"]),
        "key_dim": widths.pop(),
    }


_HF = Layout(
    _hf,
    headless=_hf_body,
    points=_hf_points,
    build=HuggingFace(
        "levit",
        ("LevitForImageClassificationWithTeacher", "LevitModel"),
        _write_hf,
        _read_hf,
        refuses={
            "LevitForImageClassification": "it has one head, and LeViT here has two, whose logits "
            "are averaged"
        },
    ),
)


def _levit_family(title: str, model: str, prefix: str, kernel: str) -> Family:
    return Family(
        title=title,
        stem=lambda config: ("stem_0/conv/kernel",),
        paper="2104.01136",
        model=model,
        computes="hard swish, BatchNorm",
        architectures={f"{prefix}_{size}": _levit(size) for size in _SIZES},
        layouts={
            "timm": Layout(
                lambda config: _table(config, kernel),
                ignore=(r".*\.attention_bias_idxs",),  # an index that older files hold
                points=_points,
                build=Timm(timm_args),
            ),
            "hf": _HF,
            "torch": Layout(
                _torch, ignore=(r".*\.attention_bias_idxs",), buffers=_distance_indices
            ),
        },
        small=always(_SMALL),
        image_size=_image_size,
        resize=_resize,
    )


FAMILIES = {
    "levit": _levit_family("LeViT", "levit:LeViT", "levit", "o i -> i o"),
    "levit_conv": _levit_family(
        "LeViT, convolutional layout", "levit:LeViTConv", "levit_conv", "o i 1 1 -> i o"
    ),
}

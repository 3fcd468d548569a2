"""BEiT (Bao et al. 2022, arXiv:2106.08254) and BEiT v2 (Peng et al. 2022, arXiv:2208.06366).

Sizes: arXiv:2106.08254, section 3.1. Top-1: the official READMEs in microsoft/unilm, `beit` and
`beit2`.

Names: those of timm, which are the official code's; and transformers' `BeitForImageClassification`.
Models that only learned to fill in masked patches are others: all their blocks share one table of
biases, and they have no pooling.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families import hf
from vit_jax.families.deit import sizes, timm_args
from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    Edits,
    Family,
    HuggingFace,
    Layout,
    Pairs,
    Shapes,
    Size,
    Timm,
    Weights,
)
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ERF,
    GAMMAS,
    HEADS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NORM,
    OUT,
    QKV,
    SMALL,
    always,
    encoder_block,
    encoder_blocks,
    encoder_points,
    imagenet,
    merged,
    patch_size,
)
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import Table, rule, under
from vit_jax.layers.relative import CLASS_ROWS

_22K = 21_841  # classes of ImageNet-22k
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_SCALE = {"base": 0.1, "large": 1e-5}  # where LayerScale starts; in BEiT v2 always at 1e-5


def _weights(
    name: str, images: Mapping[str, Preprocess], **top1: float | None
) -> dict[str, Weights]:
    """By timm's tags; without a published accuracy those of ImageNet-22k's classes.

    Args:
      images: How they are prepared, by tag, where that is not as the first's.
    """
    first = next(iter(images.values()))
    return {
        tag: Weights(
            images.get(tag, first),
            _22K if accuracy is None else 1000,
            accuracy,
            source=f"timm/{name}.{tag}",
            licence="Apache-2.0",
        )
        for tag, accuracy in top1.items()
    }


def _beit(size: str, image_size: int, top1: float) -> dict[str, Architecture]:
    name = f"beit_{size}_patch16_{image_size}"
    images = imagenet(image_size, 0.9 if image_size == 224 else 1.0, **_HALF)
    accuracies: dict[str, float | None] = {"in22k_ft_in22k_in1k": top1}
    if image_size == 224:
        accuracies["in22k_ft_in22k"] = None
    config = {**sizes(size, 16), "layer_scale_init": _SCALE[size]}
    return {name: Architecture(config, _weights(name, {"": images}, **accuracies))}


def _beitv2(size: str, crop: float, after_22k: float, after_1k: float) -> dict[str, Architecture]:
    """`crop`: of the weights with a thousand classes."""
    name = f"beitv2_{size}_patch16_224"
    images = {
        "": imagenet(224, crop, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        "in1k_ft_in22k": imagenet(224, 0.9, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    }
    accuracies = {
        "in1k_ft_in22k_in1k": after_22k,
        "in1k_ft_in1k": after_1k,
        "in1k_ft_in22k": None,
    }
    config = {**sizes(size, 16), "layer_scale_init": 1e-5}
    return {name: Architecture(config, _weights(name, images, **accuracies))}


# --- timm -----------------------------------------------------------------------------------------

_BIAS = "relative_position_bias"
_TABLE = "relative_position_bias_table"
# Indices that older files of both libraries hold; they follow from the image size.
_INDICES = (r".*\.relative_position_index",)
_BODY = rule("cls_token", "cls") + under("patch_embed.proj", "embedding", CONV)
_HEAD = under("fc_norm", "fc_norm", NORM) + under("head", "head", DENSE)
_ATTENTION = under("qkv", "", merged(QKV, bias=False))
_ATTENTION += rule("q_bias", "query/bias", "(heads d) -> heads d")
_ATTENTION += rule("v_bias", "value/bias", "(heads d) -> heads d")
_ATTENTION += rule(_TABLE, _BIAS) + under("proj", "out", OUT)
_BLOCK = encoder_block(_ATTENTION) + GAMMAS


def beit(config: Config) -> Table:
    """The names of timm's `Beit`, and of the official code's `VisionTransformer`."""
    return _BODY + encoder_blocks(config, "blocks", _BLOCK) + _HEAD


def _averages(_: Config, args: Mapping[str, Any]) -> bool:
    return args.get("global_pool", "avg") == "avg"


def _points(blocks: str, embedding: str, norm: str) -> Callable[[Config], Pairs]:
    inside = encoder_points(embedding=("embedding", embedding), blocks=blocks, norm=None)
    return lambda config: [*inside(config), ("fc_norm", norm)]


# --- Hugging Face ---------------------------------------------------------------------------------

_HF_ATTENTION = [
    row for x in QKV for row in under(f"attention.{x}", x, HEADS[:1] if x == "key" else HEADS)
]
_HF_ATTENTION += rule(f"attention.{_BIAS}.{_TABLE}", _BIAS) + under("output.dense", "out", OUT)
_HF_BLOCK = hf.block(_HF_ATTENTION)
_HF_BLOCK += rule("lambda_1", "residual_0/gamma") + rule("lambda_2", "residual_1/gamma")
_HF_LIVE = (
    *hf.LIVE,
    (rf"layers\.(\d+)\.{_BIAS}\.", rf"encoder.layer.\1.attention.attention.{_BIAS}."),
    (r"layers\.(\d+)\.lambda_", r"encoder.layer.\1.lambda_"),
)
_SHIPPED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
_OURS = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}


def _hf_body(config: Config) -> Table:
    """The names of transformers' `BeitModel`, in files."""
    rows = rule("embeddings.cls_token", "cls")
    rows += under("embeddings.patch_embeddings.projection", "embedding", CONV)
    rows += encoder_blocks(config, "encoder.layer", _HF_BLOCK)
    return rows + under("pooler.layernorm", "fc_norm", NORM)


def _hf(config: Config) -> Table:
    return under("beit", "", _hf_body(config)) + under("classifier", "head", DENSE)


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    rows, columns = image_size
    if rows != columns:
        raise UserError(
            "Hugging Face's BEiT holds tables of biases for square images only: it would take the "
            f"rows of one for {rows}×{columns} for columns. Resize the weights to a square; it "
            "stretches them for other images itself"
        )
    fields = hf.write_encoder(
        hidden_size=config["hidden_size"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        mlp_dim=config["mlp_dim"],
        patch=patch_size(config),
        image_size=image_size,
        hidden_act=_OURS["hidden_act"],
        layer_norm_eps=_OURS["layer_norm_eps"],
    )
    del fields["qkv_bias"]  # keys never have one, queries and values always
    return fields | {
        "layer_scale_init_value": config["layer_scale_init"],
        "use_relative_position_bias": True,
        "use_shared_relative_position_bias": False,
        "use_absolute_position_embeddings": False,
        "use_mask_token": False,
        "use_mean_pooling": True,
    }


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    sizes_of = hf.read_encoder(fields) | {"patch_size": hf.square(fields.get("patch_size", 16))}
    return {**sizes_of, "layer_scale_init": fields.get("layer_scale_init_value", 0.1)}


# --- other image sizes ----------------------------------------------------------------------------

_METHODS = {"official": "geometric_spline", "timm": "geometric"}


def resize_bias(table: np.ndarray, old: Size, new: Size, method: str) -> np.ndarray:
    """Biases of relative positions [(2 rows - 1) (2 columns - 1) + 3, heads] for another grid.

    Args:
      old, new: Grids (rows, columns) of patches.
      method: 'official' and 'timm' keep what is said of near patches, with a cubic spline between
        the known distances or with lines; 'bilinear', as transformers, and the other methods of
        `resize_posembed` stretch the table. The class token's rows stay as they are.
    """
    before, after = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old, new))
    distances, of_class = table[:-CLASS_ROWS], table[-CLASS_ROWS:]
    method = _METHODS.get(method, method)
    resized = resize_posembed(distances[None], before, after, 0, method)[0]
    return np.concatenate([resized, of_class])


def _tables(config: Config) -> list[str]:
    block = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_0"
    return [f"{block.format(i)}/{_BIAS}" for i in range(config["num_layers"])]


def _grid(config: Config, size: Size) -> Size:
    (rows, columns), (height, width) = size, patch_size(config)
    return rows // height, columns // width


def _image_size(config: Config, shapes: Shapes) -> Size:
    side, _ = square(shapes[_tables(config)[0]][0] - CLASS_ROWS, "the bias table's")
    height, width = patch_size(config)
    return (side + 1) // 2 * height, (side + 1) // 2 * width


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    edit = functools.partial(
        resize_bias, old=_grid(config, old), new=_grid(config, new), method=method
    )
    return dict.fromkeys(_tables(config), edit)


_LAYOUTS = {
    "timm": Layout(
        beit,
        ignore=_INDICES,
        points=_points("blocks", "patch_embed", "fc_norm"),
        build=Timm(timm_args, builds=_averages),
    ),
    "hf": Layout(
        _hf,
        headless=_hf_body,
        respell=hf.respelling("beit.", _HF_LIVE),
        ignore=_INDICES,
        points=_points(
            "beit.encoder.layer", "beit.embeddings.patch_embeddings", "beit.pooler.layernorm"
        ),
        differences=lambda config: [Difference("LayerNorm eps", "1e-6", "1e-12")],
        build=HuggingFace(
            "beit",
            ("BeitForImageClassification", "BeitModel"),
            _write_hf,
            _read_hf,
            shipped=_SHIPPED,
            ours=_OURS,
            refuses={
                "BeitForMaskedImageModeling": "its blocks share one table of biases, and it reads "
                "the tokens of masked patches; the models here are those that were fine-tuned",
                "BeitForSemanticSegmentation": "it has a decoder that no model here has",
            },
        ),
    ),
}
_SHARED: dict[str, Any] = {
    "computes": f"{ERF}, biases of relative positions",
    "layouts": _LAYOUTS,
    "official": "timm",
    "small": always(SMALL),
    "image_size": _image_size,
    "stride": patch_size,
    "resize": _resize,
    "resize_method": "official",
}

FAMILIES = {
    "beit": Family(
        title="BEiT",
        paper="2106.08254",
        model="beit:BEiT",
        architectures={
            **_beit("base", 224, 85.2),
            **_beit("base", 384, 86.8),
            **_beit("large", 224, 87.4),
            **_beit("large", 384, 88.4),
            **_beit("large", 512, 88.6),
        },
        **_SHARED,
    ),
    "beitv2": Family(
        title="BEiT v2",
        paper="2208.06366",
        model="beit:BEiTv2",
        architectures={
            **_beitv2("base", 0.9, 86.5, 85.5),
            **_beitv2("large", 0.95, 88.4, 87.3),
        },
        **_SHARED,
    ),
}

"""Masked autoencoders (He et al. 2022, arXiv:2111.06377, section 4 and appendix A.1).

The encoder is a `deit` without a head, and a part of the whole: `--part encoder` reads it alone,
and whoever fine-tunes begins with it. Licence and preparation: facebookresearch/mae.

Names: masked autoencoders: the official code's, and those of transformers, of version 4 and those
that version 5 writes.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.families import hf
from vit_jax.families.deit import deit, sizes
from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    Edits,
    Family,
    HuggingFace,
    Layout,
    Pairs,
    Size,
    is_head,
)
from vit_jax.families.parts import (
    DENSE,
    ENCODER_BLOCK,
    ERF,
    NORM,
    POSITIONS,
    SMALL,
    always,
    architecture,
    imagenet,
    patch_size,
    positions,
)
from vit_jax.families.rules import Table, rule, under

ENCODER, DECODER = "encoder", "decoder"
_PUBLISHED = "https://dl.fbaipublicfiles.com/mae/visualize"
# The decoder that all published models have (ibid., appendix A.1 and Table 1).
_DECODER = {"hidden_size": 512, "num_layers": 8, "num_heads": 16, "mlp_dim": 2048}


def _mae(size: str, patch: int, file: str) -> Architecture:
    return architecture(
        {**sizes(size, patch), "decoder": _DECODER},
        imagenet(224, 224 / 256),
        num_classes=0,
        layout="torch",
        source=f"{_PUBLISHED}/{file}",
        licence="CC-BY-NC-4.0",
    )


def encoder_config(config: Config) -> dict[str, Any]:
    """Constructor fields of the encoder, a DeiT."""
    fields = ("patch_size", "hidden_size", "num_layers", "num_heads", "mlp_dim")
    channels = {"channels": config["channels"]} if "channels" in config else {}
    return {"family": "deit", **{name: config[name] for name in fields}, **channels}


# --- names ----------------------------------------------------------------------------------------


def _without_head(table: Table) -> Table:
    return [row for row in table if not is_head(row.ours[0])]


def _official(config: Config) -> Table:
    """The names in facebookresearch/mae, class `MaskedAutoencoderViT`."""
    decoder = config["decoder"]
    rows = rule("mask_token", "mask_token") + rule("decoder_pos_embed", POSITIONS)
    rows += under("decoder_embed", "embedding", DENSE)
    for i in range(decoder["num_layers"]):
        block = f"Transformer/encoderblock_{i}"
        rows += under(f"decoder_blocks.{i}", block, ENCODER_BLOCK, heads=decoder["num_heads"])
    rows += under("decoder_norm", "Transformer/encoder_norm", NORM)
    rows += under("decoder_pred", "pixels", DENSE)
    return under("", ENCODER, _without_head(deit(config))) + under("", DECODER, rows)


def _hf(config: Config) -> Table:
    """The names of transformers' `ViTMAEForPreTraining` in files of version 4."""
    decoder = config["decoder"]
    encoder = hf.encoder(config["num_layers"], config["num_heads"], POSITIONS)
    rows = rule("mask_token", "mask_token") + rule("decoder_pos_embed", POSITIONS)
    rows += under("decoder_embed", "embedding", DENSE)
    for i in range(decoder["num_layers"]):
        block = under("", f"Transformer/encoderblock_{i}", hf.block(hf.ATTENTION))
        rows += under(f"decoder_layers.{i}", "", block, heads=decoder["num_heads"])
    rows += under("decoder_norm", "Transformer/encoder_norm", NORM)
    rows += under("decoder_pred", "pixels", DENSE)
    return under("vit", ENCODER, encoder) + under("decoder", DECODER, rows)


# The decoder's blocks have three spellings: of version 4, of live models, of files of version 5.
_LIVE = (
    *hf.LIVE,
    *(
        (rf"decoder\.decoder_{live}", f"decoder.decoder_{file.replace('encoder.layer', 'layers')}")
        for live, file in hf.LIVE
    ),
    (r"decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
)
_SHIPPED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
_OURS = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}


def _hf_points(config: Config) -> Pairs:
    stack = "Transformer/encoderblock_"
    encoder = [
        (f"{ENCODER}/{stack}{i}", f"vit.encoder.layer.{i}") for i in range(config["num_layers"])
    ]
    depth = config["decoder"]["num_layers"]
    return encoder + [
        (f"{DECODER}/{stack}{i}", f"decoder.decoder_layers.{i}") for i in range(depth)
    ]


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    decoder = config["decoder"]
    return hf.write_encoder(
        hidden_size=config["hidden_size"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        mlp_dim=config["mlp_dim"],
        patch=patch_size(config),
        image_size=image_size,
        hidden_act=_OURS["hidden_act"],
        layer_norm_eps=_OURS["layer_norm_eps"],
    ) | {
        "decoder_hidden_size": decoder["hidden_size"],
        "decoder_num_hidden_layers": decoder["num_layers"],
        "decoder_num_attention_heads": decoder["num_heads"],
        "decoder_intermediate_size": decoder["mlp_dim"],
    }


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    decoder = {
        "hidden_size": fields.get("decoder_hidden_size", _DECODER["hidden_size"]),
        "num_layers": fields.get("decoder_num_hidden_layers", _DECODER["num_layers"]),
        "num_heads": fields.get("decoder_num_attention_heads", _DECODER["num_heads"]),
        "mlp_dim": fields.get("decoder_intermediate_size", _DECODER["mlp_dim"]),
    }
    return {**hf.read_encoder(fields), "decoder": decoder}


# --- both tables of positions ---------------------------------------------------------------------

_TABLES = {part: positions(prefix=1, name=f"{part}/{POSITIONS}") for part in (ENCODER, DECODER)}


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    edits: Edits = {}
    for table in _TABLES.values():
        edits |= table["resize"](config, old, new, method)
    return edits


FAMILIES = {
    "mae": Family(
        title="MAE",
        paper="2111.06377",
        model="mae:MaskedAutoencoder",
        computes=f"pixels of patches that are left out, {ERF}",
        architectures={
            "mae_vit_base_patch16": _mae("base", 16, "mae_visualize_vit_base.pth"),
            "mae_vit_large_patch16": _mae("large", 16, "mae_visualize_vit_large.pth"),
            "mae_vit_huge_patch14": _mae("huge", 14, "mae_visualize_vit_huge.pth"),
        },
        layouts={
            "torch": Layout(_official),
            "hf": Layout(
                _hf,
                respell=hf.respelling("vit.", live=_LIVE, heads=("decoder.",)),
                points=_hf_points,
                differences=lambda config: [Difference("LayerNorm eps", "1e-6", "1e-12")],
                build=HuggingFace(
                    "vit_mae",
                    ("ViTMAEForPreTraining", "ViTMAEForPreTraining"),
                    _write_hf,
                    _read_hf,
                    shipped=_SHIPPED,
                    ours=_OURS,
                ),
            ),
        },
        small=always({**SMALL, "decoder": SMALL}),
        inputs=("images", "kept"),
        parts=lambda config: {ENCODER: encoder_config(config)},
        reference="hf",
        figures="official figures and transformers",
        frozen=lambda config: tuple(f"{part}/{POSITIONS}" for part in _TABLES),
        stem=lambda config: (f"{ENCODER}/embedding/kernel",),
        predicts_pixels=True,
        **{**_TABLES[ENCODER], "resize": _resize},
    )
}

"""What files call the tensors of SigLIP, and how libraries build it.

Checked against timm 1.0.31 and transformers 5.24. big_vision's names are ours, but for the image
tower's positions, which lie beside its encoder.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.families import clip_layouts, hf, registry, released, towers, vit_flax, vit_torch
from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    HuggingFace,
    Layout,
    Pairs,
    Shapes,
    Size,
    channels,
    is_head,
)
from vit_jax.families.parts import CONV, DENSE, GELU, MLP, NORM, OUT, QKV
from vit_jax.families.rules import Table, rule, under
from vit_jax.families.shapes import POSITIONS

NUMERICS = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}

# --- timm -----------------------------------------------------------------------------------------

# The names for which timm takes the activation that the towers were trained with.
_TIMM_TANH = ("_patch32_", "_so400m_patch16_", "_giantopt_", "_large_patch16_siglip_512")
_TIMM_TANH += ("_large_patch16_siglip_gap_512",)


def timm(architectures: Mapping[str, Architecture]) -> Layout:
    """timm's layout of image towers."""
    first = next(iter(architectures))

    def differences(config: Config) -> list[Difference]:
        name, fields = str(config.get("model_name")), registry.comparable(config)
        if name not in architectures:
            same = (n for n, a in architectures.items() if registry.comparable(a.config) == fields)
            name = next(same, first)
        return [] if any(part in name for part in _TIMM_TANH) else [GELU]

    def builds(config: Config, args: Mapping[str, Any]) -> bool:
        pool = {"map": "map", "gap": "avg"}[config["classifier"]]
        return args.get("global_pool", pool) == pool

    build = dataclasses.replace(vit_torch.TIMM.build, base=None, always=False, builds=builds)
    return dataclasses.replace(
        vit_torch.TIMM,
        skeleton=None,
        differences=differences,
        unsaid=lambda config: [],
        build=build,
    )


# --- Hugging Face: the image tower ----------------------------------------------------------------

MAP_HEAD = (
    rule("probe", "probe")
    + rule(
        "attention.in_proj_weight",
        tuple(f"MultiHeadDotProductAttention_0/{x}/kernel" for x in QKV),
        "(n heads d) c -> n c heads d",
    )
    + rule(
        "attention.in_proj_bias",
        tuple(f"MultiHeadDotProductAttention_0/{x}/bias" for x in QKV),
        "(n heads d) -> n heads d",
    )
    + under("attention.out_proj", "MultiHeadDotProductAttention_0/out", OUT)
    + under("layernorm", "LayerNorm_0", NORM)
    + under("mlp", "MlpBlock_0", MLP)
)


def vision_rows(config: Config) -> Table:
    """transformers' `SiglipVisionModel`, with its attention pooling or without."""
    rows = under("embeddings.patch_embedding", "embedding", CONV)
    rows += rule("embeddings.position_embedding.weight", POSITIONS, "t d -> 1 t d")
    sizes = config["transformer"]
    rows += hf.tower_blocks(sizes["num_layers"], "Transformer")
    rows += under("post_layernorm", "Transformer/encoder_norm", NORM)
    if config["classifier"] == "map":
        rows += under("head", "MAPHead_0", MAP_HEAD)
    return under("", "", rows, heads=sizes["num_heads"])


def refuse_head(config: Config) -> Table:
    """UserError: the table of a tower with a classifier."""
    raise UserError(
        "transformers has no SigLIP that classifies what its attention pooling gives; drop the "
        "head, or use timm or big_vision"
    )


def write_vision(config: Config, image_size: Size) -> dict[str, Any]:
    """The entries of a `SiglipVisionConfig`; UserError where it computes something else."""
    if config["classifier"] != "map":
        raise UserError(
            "transformers' SiglipVisionModel pools its tokens by attention or not at all, and this "
            f"tower by {config['classifier']!r}; use timm or big_vision"
        )
    sizes, (patch, columns) = config["transformer"], config["patches"]["size"]
    if patch != columns:
        raise UserError("transformers' SigLIP has square patches only")
    height, width = image_size
    if height != width:
        count = (height // patch) * (width // patch)
        height = math.isqrt(count) * patch
        if (height // patch) ** 2 != count:
            raise UserError(
                f"transformers' SigLIP has positions of square images only, not of {image_size[0]}×"
                f"{width} pixels; resize the weights with --image-size, or use timm or big_vision"
            )
    return {
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": sizes["num_layers"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": sizes["mlp_dim"],
        "image_size": height,
        "patch_size": patch,
        "num_channels": channels(config),
        "vision_use_head": True,
        **NUMERICS,
    }


def read_vision(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse; what an entry leaves out is what transformers takes then."""
    patch = hf.square(fields.get("patch_size", 16))
    return {
        "patches": {"size": (patch, patch)},
        "hidden_size": fields.get("hidden_size", 768),
        "transformer": {**read_sizes(fields), "dropout_rate": 0.0, "attention_dropout_rate": 0.0},
        "classifier": "map" if fields.get("vision_use_head", True) else "gap",
    }


def read_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Depth, heads and width of the MLP of either tower."""
    return {
        "num_layers": fields.get("num_hidden_layers", 12),
        "num_heads": fields.get("num_attention_heads", 12),
        "mlp_dim": fields.get("intermediate_size", 3072),
    }


def respell_vision(names: Iterable[str]) -> dict[str, str]:
    """Files of transformers 4 have a prefix, those of 5 have none."""
    return {name.removeprefix("vision_model."): name for name in names}


def _vision_points(config: Config) -> Pairs:
    depth = config["transformer"]["num_layers"]
    blocks = [(f"Transformer/encoderblock_{i}", f"encoder.layers.{i}") for i in range(depth)]
    return [*blocks, ("Transformer/encoder_norm", "post_layernorm")]


OLD_BUFFERS = (r"(?:(?:vision|text)_model\.)?embeddings\.position_ids",)
HF_VISION = Layout(
    refuse_head,
    headless=vision_rows,
    respell=respell_vision,
    ignore=OLD_BUFFERS,
    points=_vision_points,
    build=HuggingFace(
        "siglip_vision_model", (None, "SiglipVisionModel"), write_vision, read_vision
    ),
)


# --- Hugging Face: both towers --------------------------------------------------------------------


def text_rows(config: Config) -> Table:
    """transformers' `SiglipTextModel`."""
    rows = rule("embeddings.token_embedding.weight", "Embed_0/embedding")
    rows += rule("embeddings.position_embedding.weight", "pos_embedding", "l d -> 1 l d")
    rows += hf.tower_blocks(config["num_layers"], "Encoder_0")
    rows += under("final_layer_norm", "Encoder_0/encoder_norm", NORM)
    return under("", "", rows + under("head", "head", DENSE), heads=config["num_heads"])


_LENGTH = Difference("what divides an embedding", "its length + 1e-8", "its length")


def _both_rows(config: Config) -> Table:
    parts = towers.towers(config)
    rows = _of_image(parts[towers.IMAGE]).headless
    assert rows is not None
    return (
        under("vision_model", towers.IMAGE, rows(parts[towers.IMAGE]))
        + under("text_model", towers.TEXT, text_rows(parts[towers.TEXT]))
        + rule("logit_scale", "t")
        + rule("logit_bias", "b")
    )


def _of_image(image: Config) -> Layout:
    """What its own family knows of the image tower."""
    return registry.get(image).layouts["hf"]


def _both_points(config: Config) -> Pairs:
    parts = towers.towers(config)
    image = _of_image(parts[towers.IMAGE]).points(parts[towers.IMAGE])
    depth = parts[towers.TEXT]["num_layers"]
    text = [(f"Encoder_0/encoderblock_{i}", f"encoder.layers.{i}") for i in range(depth)]
    text.append(("Encoder_0/encoder_norm", "final_layer_norm"))
    return [(f"{towers.IMAGE}/{ours}", f"vision_model.{theirs}") for ours, theirs in image] + [
        (f"{towers.TEXT}/{ours}", f"text_model.{theirs}") for ours, theirs in text
    ]


def _write_both(config: Config, image_size: Size) -> dict[str, Any]:
    parts = towers.towers(config)
    image, text = parts[towers.IMAGE], parts[towers.TEXT]
    return {
        "vision_config": _of_image(image).build.write(image, image_size),
        "text_config": {
            "hidden_size": text["width"],
            "num_hidden_layers": text["num_layers"],
            "num_attention_heads": text["num_heads"],
            "intermediate_size": text["mlp_dim"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["length"],
            "projection_size": towers.heads(config)[towers.TEXT],
            **NUMERICS,
        },
    }


def hf_both(
    model_type: str,
    cls: str,
    image_family: str,
    architectures: Mapping[str, Architecture],
    image_size: Callable[[Mapping[str, Any]], int],
) -> Layout:
    """transformers' layout of models of two towers.

    Args:
      model_type, cls: As in `HuggingFace`.
      image_family: The family of the image tower.
      architectures: The registered models.
      image_size: Entries of the image tower to the size by which one of equal fields is told.
    """

    def read(fields: Mapping[str, Any]) -> dict[str, Any]:
        vision, text = fields.get("vision_config") or {}, fields.get("text_config") or {}
        width = text.get("hidden_size", 768)
        sizes = {**read_sizes(text), "width": width, "vocab_size": text.get("vocab_size", 32_000)}
        image = {"family": image_family}
        config = {
            "image": image | _of_image(image).build.read(vision),
            "text_model": "text_transformer",
            "text": sizes,
            "out_dim": (None, text.get("projection_size") or width),
            "temperature_init": 10.0,
            "bias_init": -10.0,
            "length": text.get("max_position_embeddings", 64),
        }
        told = (config["length"], image_size(vision))
        for name, known in architectures.items():
            own = (known.config["length"], known.default.preprocess.size)
            if told == own and registry.comparable(known.config) == registry.comparable(config):
                return {**known.config, "model_name": name}
        return config

    return Layout(
        _both_rows,
        ignore=OLD_BUFFERS,
        points=_both_points,
        differences=lambda config: [_LENGTH] if _norm_eps(config) else [],
        build=HuggingFace(model_type, (None, cls), _write_both, read, norm_eps=_norm_eps),
    )


def _norm_eps(config: Config) -> float:
    return config.get("norm_eps", 1e-8)


# --- open_clip ------------------------------------------------------------------------------------


def open_clip_both(architectures: Mapping[str, Architecture]) -> Layout:
    """open_clip's layout of models of two towers: its image towers are timm's.

    Checked against open_clip 3.3.0.

    Args:
      architectures: The registered models.
    """

    def table(config: Config) -> Table:
        parts = towers.towers(config)
        image, text = parts[towers.IMAGE], parts[towers.TEXT]
        rows = registry.get(image).layouts["timm"].table(image)
        return (
            under("visual.trunk", towers.IMAGE, [r for r in rows if not any(map(is_head, r.ours))])
            + under("text", towers.TEXT, clip_layouts.torch_text(text))
            + under("text.text_projection", f"{towers.TEXT}/head", DENSE)
            + rule("logit_scale", "t", "-> 1")
            + rule("logit_bias", "b", "-> 1")
        )

    def differences(config: Config) -> list[Difference]:
        image = towers.towers(config)[towers.IMAGE]
        found = registry.get(image).layouts["timm"].differences(image)
        second = (a.config["text"] for n, a in architectures.items() if n.startswith(_SECOND))
        as_trained = config["text"]["vocab_size"] in {text["vocab_size"] for text in second}
        return [*found, *([] if as_trained else [_TEXT_GELU]), _LENGTH]

    return Layout(table, differences=differences)


_SECOND = "siglip2-"  # whose text towers open_clip computes as they were trained
_TEXT_GELU = GELU._replace(what=f"text tower's {GELU.what}")


# --- big_vision -----------------------------------------------------------------------------------

# The image tower has neither a class token, whose position is folded, nor computed positions.
BIG_VISION_TOWER = dataclasses.replace(
    vit_flax.BIG_VISION,
    computed=lambda names: False,
    complete=lambda shapes: any("pos_embedding" in name for name in shapes),
    after_reading=None,
    before_writing=None,
)


def big_vision_both(positions: str) -> Layout:
    """big_vision's layout of models of two towers.

    Args:
      positions: Our name, in the image tower, of what is `pos_embedding` in its files.
    """
    start = f"{towers.IMAGE}/"
    moved = {f"{start}{positions}": f"{start}pos_embedding"}

    def table(config: Config) -> Table:
        names = towers.shapes(config, 0, _ANY_SIZE) or {}
        return [row for n in names for row in rule(f"params/{moved.get(n, n)}", n)]

    def reading(shapes: Shapes) -> Table:
        """From a file's names, of any age, to ours."""
        back = {theirs: ours for ours, theirs in moved.items()}
        back[f"{start}Transformer/pos_embedding"] = f"{start}{positions}"
        rows = released.reading(shapes)
        return [r._replace(ours=(back.get(r.ours[0], r.ours[0]),)) for r in rows]

    return Layout(table, reading=reading)


_ANY_SIZE = (1024, 1024)  # by which no name of a tensor changes

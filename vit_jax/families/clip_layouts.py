"""What files call the tensors of CLIP's towers, and how libraries build them.

Checked against timm 1.0.31 and transformers 5.24. `torch` are the names of OpenAI's code, which
OpenCLIP, MetaCLIP and DFN have too; a tower alone has them without what stands before them there.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.families import hf, towers
from vit_jax.families.family import Config, HuggingFace, Layout, Pairs, Size, Timm, channels
from vit_jax.families.parts import (
    DENSE,
    ENCODER_BLOCK,
    KERNEL,
    LINEAR,
    NORM,
    OUT,
    POSITIONS,
    QKV,
    encoder_points,
    mlp_ratio,
    patch_size,
)
from vit_jax.families.rules import Table, rule, under

IMAGE, TEXT = towers.IMAGE, towers.TEXT
_EPS = 1e-5
# The `eos_token_id` for which transformers reads a text off at its largest number, as OpenAI does.
_LARGEST = 2
_OURS = {"eos_token_id": _LARGEST}
# What our text tower calls its stack of blocks, and the image tower its own.
_STACK = {IMAGE: "Transformer", TEXT: "Encoder_0"}


# --- timm: the image tower ------------------------------------------------------------------------


def timm_rows(config: Config) -> Table:
    """timm's `VisionTransformer` with `pre_norm`, without the bias of its head."""
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    rows += under("patch_embed.proj", "embedding", KERNEL) + under("norm_pre", "pre_norm", NORM)
    for i in range(config["num_layers"]):
        rows += under(f"blocks.{i}", f"Transformer/encoderblock_{i}", ENCODER_BLOCK)
    rows += under("norm", "Transformer/encoder_norm", NORM) + under("head", "head", LINEAR)
    return under("", "", rows, heads=config["num_heads"])


def _timm_args(config: Config) -> dict[str, Any]:
    width = config["hidden_size"]
    return {
        "patch_size": patch_size(config)[0],
        "embed_dim": width,
        "depth": config["num_layers"],
        "num_heads": config["num_heads"],
        "mlp_ratio": mlp_ratio(config["mlp_dim"], width),
    }


def _timm_base(config: Config) -> str:
    quick = "quickgelu_" if config["activation"] == "quick_gelu" else ""
    return f"vit_base_patch32_clip_{quick}224"


def _timm_builds(config: Config, args: Mapping[str, Any]) -> bool:
    activation = args.get("act_layer") or config["activation"]
    return args.get("global_pool", "token") == "token" and activation == config["activation"]


TIMM = Layout(
    timm_rows,
    zeros={"head.bias": "head/kernel"},
    points=encoder_points(),
    build=Timm(_timm_args, base=_timm_base, builds=_timm_builds),
)


# --- OpenAI and OpenCLIP --------------------------------------------------------------------------

_BLOCK = (
    under("ln_1", "LayerNorm_0", NORM)
    + rule(
        "attn.in_proj_weight",
        tuple(f"MultiHeadDotProductAttention_0/{x}/kernel" for x in QKV),
        "(n heads d) c -> n c heads d",
    )
    + rule(
        "attn.in_proj_bias",
        tuple(f"MultiHeadDotProductAttention_0/{x}/bias" for x in QKV),
        "(n heads d) -> n heads d",
    )
    + under("attn.out_proj", "MultiHeadDotProductAttention_0/out", OUT)
    + under("ln_2", "LayerNorm_1", NORM)
    + under("mlp.c_fc", "MlpBlock_0/Dense_0", DENSE)
    + under("mlp.c_proj", "MlpBlock_0/Dense_1", DENSE)
)


def _torch_blocks(config: Config, branch: str) -> Table:
    rows: Table = []
    for i in range(config["num_layers"]):
        ours = f"{_STACK[branch]}/encoderblock_{i}"
        rows += under(f"transformer.resblocks.{i}", ours, _BLOCK, heads=config["num_heads"])
    return rows


def _torch_vision(config: Config) -> Table:
    return (
        rule("class_embedding", "cls", "d -> 1 1 d")
        + rule("positional_embedding", POSITIONS, "t d -> 1 t d")
        + under("conv1", "embedding", KERNEL)
        + under("ln_pre", "pre_norm", NORM)
        + _torch_blocks(config, IMAGE)
        + under("ln_post", "Transformer/encoder_norm", NORM)
        + rule("proj", "head/kernel")
    )


def torch_text(config: Config) -> Table:
    """A text tower without its projection, as open_clip has those of other families too."""
    return (
        rule("token_embedding.weight", "Embed_0/embedding")
        + rule("positional_embedding", "pos_embedding", "l d -> 1 l d")
        + _torch_blocks(config, TEXT)
        + under("ln_final", "Encoder_0/encoder_norm", NORM)
    )


def _torch_text(config: Config) -> Table:
    return torch_text(config) + rule("text_projection", "head/kernel")


def _torch_both(config: Config) -> Table:
    parts = towers.towers(config)
    return (
        under("visual", IMAGE, _torch_vision(parts[IMAGE]))
        + under("", TEXT, _torch_text(parts[TEXT]))
        + rule("logit_scale", "t", "-> 1")
    )


def _without_text(names: Iterable[str]) -> dict[str, str]:
    """OpenCLIP's models whose text tower is a module of its own have `text.` before its names."""
    return {name.removeprefix("text."): name for name in names}


# OpenAI's archives hold numbers about themselves; a causal mask is the same in all models.
_TORCH_IGNORE = (r"(?:input_resolution|context_length|vocab_size)", r"(?:text\.)?attn_mask")
TORCH_VISION = Layout(_torch_vision)
TORCH_TEXT = Layout(_torch_text, respell=_without_text, ignore=_TORCH_IGNORE)
TORCH_BOTH = Layout(_torch_both, respell=_without_text, ignore=_TORCH_IGNORE)


# --- Hugging Face ---------------------------------------------------------------------------------

_OLD_BUFFERS = (r"(?:(?:vision|text)_model\.)?embeddings\.position_ids",)


def _hf_vision(config: Config) -> Table:
    """transformers' `CLIPVisionModelWithProjection`, which spells `pre_layrnorm` as it does."""
    rows = rule("embeddings.class_embedding", "cls", "d -> 1 1 d")
    rows += rule("embeddings.position_embedding.weight", POSITIONS, "t d -> 1 t d")
    rows += under("embeddings.patch_embedding", "embedding", KERNEL)
    rows += under("pre_layrnorm", "pre_norm", NORM)
    rows += hf.tower_blocks(config["num_layers"], _STACK[IMAGE])
    rows += under("post_layernorm", "Transformer/encoder_norm", NORM)
    rows = under("vision_model", "", rows, heads=config["num_heads"])
    return rows + under("visual_projection", "head", LINEAR)


def _hf_text(config: Config) -> Table:
    """transformers' `CLIPTextModelWithProjection`."""
    rows = rule("embeddings.token_embedding.weight", "Embed_0/embedding")
    rows += rule("embeddings.position_embedding.weight", "pos_embedding", "l d -> 1 l d")
    rows += hf.tower_blocks(config["num_layers"], _STACK[TEXT])
    rows += under("final_layer_norm", "Encoder_0/encoder_norm", NORM)
    rows = under("text_model", "", rows, heads=config["num_heads"])
    return rows + under("text_projection", "head", LINEAR)


def _hf_both(config: Config) -> Table:
    parts = towers.towers(config)
    return (
        under("", IMAGE, _hf_vision(parts[IMAGE]))
        + under("", TEXT, _hf_text(parts[TEXT]))
        + rule("logit_scale", "t", "-> 1")
    )


def _points(branch: str, theirs: str, norm: str | None) -> Any:
    def points(config: Config) -> Pairs:
        stack, depth = _STACK[branch], config["num_layers"]
        blocks = [
            (f"{stack}/encoderblock_{i}", f"{theirs}.encoder.layers.{i}") for i in range(depth)
        ]
        return blocks + ([] if norm is None else [(f"{stack}/encoder_norm", f"{theirs}.{norm}")])

    return points


# transformers normalises the class token alone after the blocks, where all tokens are here.
_VISION_POINTS = _points(IMAGE, "vision_model", None)
_TEXT_POINTS = _points(TEXT, "text_model", "final_layer_norm")


def _both_points(config: Config) -> Pairs:
    parts = towers.towers(config)
    found = {IMAGE: _VISION_POINTS(parts[IMAGE]), TEXT: _TEXT_POINTS(parts[TEXT])}
    return [(f"{at}/{ours}", theirs) for at, pairs in found.items() for ours, theirs in pairs]


def _respelling(prefix: str) -> Any:
    """Models without a projection have no prefix since transformers 5; files of 4 have one."""

    def respell(names: Iterable[str]) -> dict[str, str]:
        bare = ("embeddings.", "encoder.", "pre_", "post_", "final_")
        return {prefix + n if n.startswith(bare) else n: n for n in names}

    return respell


def _write(config: Config) -> dict[str, Any]:
    """The entries that both towers have."""
    return {
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": config["mlp_dim"],
        "hidden_act": config["activation"],
        "layer_norm_eps": _EPS,
    }


def _write_vision(config: Config, image_size: Size) -> dict[str, Any]:
    rows, columns = image_size
    patch, other = patch_size(config)
    if rows != columns or patch != other:
        raise UserError(
            f"transformers' CLIP has positions of square images only, not of {rows}×{columns} "
            "pixels; resize the weights with --image-size, or use timm or torch"
        )
    images = {"image_size": rows, "patch_size": patch, "num_channels": channels(config)}
    return {**_write(config), **images}


def _write_text(config: Config, image_size: Size) -> dict[str, Any]:
    del image_size
    end = config.get("end")
    return {
        **_write(config),
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["max_length"],
        "eos_token_id": _LARGEST if end is None else end,
    }


def _write_both(config: Config, image_size: Size) -> dict[str, Any]:
    parts = towers.towers(config)
    return {
        "vision_config": _write_vision(parts[IMAGE], image_size),
        "text_config": _write_text(parts[TEXT], image_size),
        "projection_dim": config["out_dim"],
    }


def _read(fields: Mapping[str, Any], width: int, heads: int) -> dict[str, Any]:
    """The fields that both towers have; what an entry leaves out is what transformers takes."""
    activation = fields.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise UserError(
            f"the activation of this CLIP, hidden_act, is {activation!r}; here it is 'quick_gelu' "
            "or 'gelu'"
        )
    return {
        "hidden_size": fields.get("hidden_size", width),
        "num_layers": fields.get("num_hidden_layers", 12),
        "num_heads": fields.get("num_attention_heads", heads),
        "mlp_dim": fields.get("intermediate_size", 4 * width),
        "activation": activation,
    }


def _read_vision(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**_read(fields, 768, 12), "patch_size": hf.square(fields.get("patch_size", 32))}


def _read_text(fields: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary = fields.get("vocab_size", 49_408)
    found = {
        **_read(fields, 512, 8),
        "vocab_size": vocabulary,
        "max_length": fields.get("max_position_embeddings", 77),
    }
    end = fields.get("eos_token_id", vocabulary - 1)
    return found if end in (_LARGEST, vocabulary - 1) else {**found, "end": end}


def _read_both(fields: Mapping[str, Any]) -> dict[str, Any]:
    image = _read_vision(fields.get("vision_config") or {})
    text = _read_text(fields.get("text_config") or {})
    return {
        "image": {"family": "clip_vision", **image},
        "text_model": "clip_text",
        "text": text,
        "out_dim": fields.get("projection_dim", 512),
    }


_COUNT = "projection_dim"  # the entry that counts the outputs of a tower
HF_VISION = Layout(
    _hf_vision,
    respell=_respelling("vision_model."),
    ignore=_OLD_BUFFERS,
    points=_VISION_POINTS,
    build=HuggingFace(
        "clip_vision_model",
        ("CLIPVisionModelWithProjection", "CLIPVisionModel"),
        _write_vision,
        _read_vision,
        outputs=_COUNT,
    ),
)
HF_TEXT = Layout(
    _hf_text,
    respell=_respelling("text_model."),
    ignore=_OLD_BUFFERS,
    points=_TEXT_POINTS,
    build=HuggingFace(
        "clip_text_model",
        ("CLIPTextModelWithProjection", "CLIPTextModel"),
        _write_text,
        _read_text,
        ours=_OURS,
        outputs=_COUNT,
    ),
)
HF_BOTH = Layout(
    _hf_both,
    ignore=_OLD_BUFFERS,
    points=_both_points,
    build=HuggingFace("clip", (None, "CLIPModel"), _write_both, _read_both, ours=_OURS),
)

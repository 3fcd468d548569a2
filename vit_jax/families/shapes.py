"""Shapes of the original models' parameters from their config alone: no JAX, no arrays.

Looking at a file of theirs would otherwise take as long as importing JAX does.
"""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.families.family import Config, Shape, channels

POSITIONS = "Transformer/posembed_input/pos_embedding"


def has_class_token(config: Config) -> bool:
    """Whether the model has a class token, which also has a position."""
    return config["classifier"] in ("token", "token_unpooled")


def is_plain(config: Config) -> bool:
    """Whether the encoder is the original's, whose tensors a config tells."""
    return config.get("encoder") in (None, "plain")


def refuse_other_encoders(config: Config) -> None:
    """UserError for a model whose encoder no library has, for want of names there."""
    if not is_plain(config):
        raise UserError("only our own names hold a Vision Transformer with another encoder")


def _dense(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}/kernel", (inputs, outputs)
    yield f"{name}/bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}/scale", (width,)
    yield f"{name}/bias", (width,)


def _mlp(name: str, width: int, hidden: int) -> Iterator[tuple[str, Shape]]:
    yield from _dense(f"{name}/Dense_0", width, hidden)
    yield from _dense(f"{name}/Dense_1", hidden, width)


def _conv(name: str, size: Shape, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}/kernel", (*size, inputs, outputs)
    yield f"{name}/bias", (outputs,)


def mixer_shapes(
    config: Mapping[str, Any], num_classes: int, num_patches: int
) -> Iterator[tuple[str, Shape]]:
    """Linen name and shape of every parameter of a Mixer; without classes there is no head."""
    width = config["hidden_dim"]
    yield from _conv("stem", tuple(config["patches"]["size"]), channels(config), width)
    for i in range(config["num_blocks"]):
        block = f"MixerBlock_{i}"
        yield from _norm(f"{block}/LayerNorm_0", width)
        yield from _mlp(f"{block}/token_mixing", num_patches, config["tokens_mlp_dim"])
        yield from _norm(f"{block}/LayerNorm_1", width)
        yield from _mlp(f"{block}/channel_mixing", width, config["channels_mlp_dim"])
    yield from _norm("pre_head_layer_norm", width)
    yield from _head(width, num_classes)


def vit_shapes(
    config: Mapping[str, Any], num_classes: int, num_patches: int
) -> Iterator[tuple[str, Shape]]:
    """Linen name and shape of every parameter of a Vision Transformer or hybrid."""
    width = config["hidden_size"]
    inputs = channels(config)
    if config.get("resnet") is not None:
        inputs = yield from _resnet(config["resnet"], inputs)
    yield from _conv("embedding", tuple(config["patches"]["size"]), inputs, width)
    if config.get("transformer") is not None:
        if config.get("mask_token"):
            yield "head_mask_token", (1, 1, width)
        if has_class_token(config):
            yield "cls", (1, 1, width)
        yield POSITIONS, (1, num_patches + has_class_token(config), width)
        for i in range(config["transformer"]["num_layers"]):
            yield from _encoder_block(f"Transformer/encoderblock_{i}", width, config["transformer"])
        yield from _norm("Transformer/encoder_norm", width)
    if config["classifier"] == "map":
        yield from _map_head(width, config["transformer"])
    if config.get("representation_size") is not None:
        yield from _dense("pre_logits", width, config["representation_size"])
    yield from _head(config.get("representation_size") or width, num_classes)


def bert_shapes(config: Mapping[str, Any], num_classes: int) -> Iterator[tuple[str, Shape]]:
    """Linen name and shape of every parameter of a BERT; without classes there is no head."""
    width, encoder = config["hidden_size"], "BertEncoder_0"
    for what, rows in (("position", "max_length"), ("segment", "num_segments")):
        yield f"{encoder}/embedder/embedders_{what}_ids/embedding", (config[rows], width)
    yield f"{encoder}/embedder/embedders_token_ids/embedding", (config["vocab_size"], width)
    yield from _norm(f"{encoder}/layer_norm", width)
    for i in range(config["num_layers"]):
        block = f"{encoder}/encoder_block/layer_sequence/layers_{i}"
        for part in ("query", "key", "value"):
            yield from _dense(f"{block}/attention_block/attention_layer/{part}", width, width)
        yield from _dense(f"{block}/attention_block/dense_layer", width, width)
        yield from _norm(f"{block}/attention_block/layer_norm", width)
        yield from _dense(f"{block}/mlp_block/mlp/dense_layer", width, config["mlp_dim"])
        yield from _dense(f"{block}/mlp_block/dense_layer", config["mlp_dim"], width)
        yield from _norm(f"{block}/mlp_block/layer_norm", width)
    yield from _head(width, num_classes)


def text_transformer_shapes(
    config: Mapping[str, Any], num_classes: int, length: int
) -> Iterator[tuple[str, Shape]]:
    """Linen name and shape of every parameter of a text Transformer for texts of that length."""
    width = config["width"]
    yield "Embed_0/embedding", (config["vocab_size"], width)
    yield "pos_embedding", (1, length, width)
    for i in range(config["num_layers"]):
        yield from _encoder_block(f"Encoder_0/encoderblock_{i}", width, config)
    yield from _norm("Encoder_0/encoder_norm", width)
    yield from _head(width, num_classes)


def clip_vision_shapes(
    config: Mapping[str, Any], num_classes: int, num_patches: int
) -> Iterator[tuple[str, Shape]]:
    """Linen name and shape of every parameter of CLIP's image tower."""
    width, size = config["hidden_size"], config["patch_size"]
    height, columns = (size, size) if isinstance(size, int) else size
    yield "embedding/kernel", (height, columns, channels(config), width)
    yield "cls", (1, 1, width)
    yield "posembed_input/pos_embedding", (1, 1 + num_patches, width)
    yield from _norm("pre_norm", width)
    for i in range(config["num_layers"]):
        yield from _encoder_block(f"Transformer/encoderblock_{i}", width, config)
    yield from _norm("Transformer/encoder_norm", width)
    yield from _projection(width, num_classes)


def clip_text_shapes(config: Mapping[str, Any], num_classes: int) -> Iterator[tuple[str, Shape]]:
    """Linen name and shape of every parameter of CLIP's text tower."""
    width = config["hidden_size"]
    yield "Embed_0/embedding", (config["vocab_size"], width)
    yield "pos_embedding", (1, config["max_length"], width)
    for i in range(config["num_layers"]):
        yield from _encoder_block(f"Encoder_0/encoderblock_{i}", width, config)
    yield from _norm("Encoder_0/encoder_norm", width)
    yield from _projection(width, num_classes)


def _projection(width: int, num_classes: int) -> Iterator[tuple[str, Shape]]:
    if num_classes:
        yield "head/kernel", (width, num_classes)


def _head(width: int, num_classes: int) -> Iterator[tuple[str, Shape]]:
    if num_classes:
        yield from _dense("head", width, num_classes)


def _encoder_block(name: str, width: int, config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}/LayerNorm_0", width)
    yield from _attention(f"{name}/MultiHeadDotProductAttention_0", width, config["num_heads"])
    yield from _norm(f"{name}/LayerNorm_1", width)
    yield from _mlp(f"{name}/MlpBlock_0", width, config["mlp_dim"])


def _map_head(width: int, config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    """big_vision's attention pooling; its sizes are those of a block."""
    yield "MAPHead_0/probe", (1, 1, width)
    yield from _attention("MAPHead_0/MultiHeadDotProductAttention_0", width, config["num_heads"])
    yield from _norm("MAPHead_0/LayerNorm_0", width)
    yield from _mlp("MAPHead_0/MlpBlock_0", width, config["mlp_dim"])


def _attention(name: str, width: int, heads: int) -> Iterator[tuple[str, Shape]]:
    if width % heads:
        raise UserError(f"width {width} is no multiple of {heads} heads")
    for part in ("query", "key", "value"):
        yield f"{name}/{part}/kernel", (width, heads, width // heads)
        yield f"{name}/{part}/bias", (heads, width // heads)
    yield f"{name}/out/kernel", (heads, width // heads, width)
    yield f"{name}/out/bias", (width,)


def _resnet(config: Mapping[str, Any], channels: int) -> Generator[tuple[str, Shape], None, int]:
    """Returns the number of channels that the last stage gives."""
    root = inputs = int(64 * config["width_factor"])
    yield "conv_root/kernel", (7, 7, channels, root)
    yield from _norm("gn_root", root)
    for i, units in enumerate(config["num_layers"]):
        width = root * 2**i
        for j in range(units):
            unit = f"block{i + 1}/unit{j + 1}"
            sizes = ((1, inputs, width), (3, width, width), (1, width, 4 * width))
            for k, (size, before, after) in enumerate(sizes, 1):
                yield f"{unit}/conv{k}/kernel", (size, size, before, after)
                yield from _norm(f"{unit}/gn{k}", after)
            if j == 0:
                yield f"{unit}/conv_proj/kernel", (1, 1, inputs, 4 * width)
                yield from _norm(f"{unit}/gn_proj", 4 * width)
            inputs = 4 * width
    return inputs

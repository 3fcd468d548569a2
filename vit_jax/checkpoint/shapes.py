"""Names and shapes of a model's parameters, from its config alone: no JAX, no arrays.

What a file must hold is checked against this, and what a file holds is recognised by it.
"""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families.registry import family_of

Shape = tuple[int, ...]


def param_shapes(
    config: Mapping[str, Any], *, num_classes: int, num_patches: int
) -> dict[str, Shape]:
    """Shapes by linen name.

    Args:
      config: Constructor fields of a Vision Transformer or Mixer.
      num_classes: 0 means that there is no head.
      num_patches: Patches of an image (the class token not counted).
    """
    if family_of(config) == "mixer":
        rows = _mixer(config, num_patches)
        width = config["hidden_dim"]
    else:
        rows = _vit(config, num_patches)
        width = config.get("representation_size") or config["hidden_size"]
    shapes = dict(rows)
    if num_classes:
        shapes |= dict(_dense("head", width, num_classes))
    return shapes


def check_shapes(expected: Mapping[str, Shape], params: Mapping[str, Any]) -> None:
    """Raises UserError, naming each tensor whose shape is not the expected one."""
    require_shapes(expected, {name: np.shape(x) for name, x in params.items()})


def require_shapes(expected: Mapping[str, Shape], got: Mapping[str, Shape]) -> None:
    """As `check_shapes`, of shapes alone."""
    wrong = [
        f"{name!r}: expected shape {tuple(shape)}, got {got[name]}"
        for name, shape in expected.items()
        if name in got and tuple(got[name]) != tuple(shape)
    ]
    if wrong:
        more = f"\n  … and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise UserError("wrong shapes:\n  " + "\n  ".join(wrong[:20]) + more)


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


def _mixer(config: Mapping[str, Any], num_patches: int) -> Iterator[tuple[str, Shape]]:
    width = config["hidden_dim"]
    yield from _conv("stem", tuple(config["patches"]["size"]), 3, width)
    for i in range(config["num_blocks"]):
        block = f"MixerBlock_{i}"
        yield from _norm(f"{block}/LayerNorm_0", width)
        yield from _mlp(f"{block}/token_mixing", num_patches, config["tokens_mlp_dim"])
        yield from _norm(f"{block}/LayerNorm_1", width)
        yield from _mlp(f"{block}/channel_mixing", width, config["channels_mlp_dim"])
    yield from _norm("pre_head_layer_norm", width)


def _vit(config: Mapping[str, Any], num_patches: int) -> Iterator[tuple[str, Shape]]:
    width = config["hidden_size"]
    has_cls = config["classifier"] in ("token", "token_unpooled")
    channels = 3
    if config.get("resnet") is not None:
        channels = yield from _resnet(config["resnet"])
    yield from _conv("embedding", tuple(config["patches"]["size"]), channels, width)
    if config.get("transformer") is not None:
        if has_cls:
            yield "cls", (1, 1, width)
        yield "Transformer/posembed_input/pos_embedding", (1, num_patches + has_cls, width)
        for i in range(config["transformer"]["num_layers"]):
            yield from _encoder_block(f"Transformer/encoderblock_{i}", width, config["transformer"])
        yield from _norm("Transformer/encoder_norm", width)
    if config["classifier"] == "map":
        yield from _map_head(width, config["transformer"])
    if config.get("representation_size") is not None:
        yield from _dense("pre_logits", width, config["representation_size"])


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


def _resnet(config: Mapping[str, Any]) -> Generator[tuple[str, Shape], None, int]:
    """Returns the number of channels that the last stage gives."""
    root = inputs = int(64 * config["width_factor"])
    yield "conv_root/kernel", (7, 7, 3, root)
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

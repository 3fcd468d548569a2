"""The constructor fields of all families that are numbers, and the range of each.

All families speak one vocabulary, so that a name has one range; `transformer` holds fields of the
encoder, `decoder` those of a decoder, `image` and `text` those of towers, which have the names that
other families give them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.ranges import ANY, COUNT, RATE, Range, above, at_least, integer

RANGES = {
    "num_classes": integer(0),
    # What an image is cut into.
    "patch_size": COUNT,
    "patch_sizes": COUNT,
    "patches.size": COUNT,
    "patches.grid": COUNT,
    "position_grid": COUNT,
    "image_scales": above(0),
    "kernel_size": COUNT,
    "stride": COUNT,
    "last_stride": COUNT,
    "num_convolutions": COUNT,
    "stem_features": integer(1, None),
    "resnet.num_layers": COUNT,
    "resnet.width_factor": above(0),
    # Widths and depths. A branch of a model may have no layers of its own.
    "hidden_size": COUNT,
    "hidden_sizes": COUNT,
    "token_size": COUNT,
    "hidden_dim": COUNT,
    "mlp_dim": COUNT,
    "mlp_ratios": above(0),
    "tokens_mlp_dim": COUNT,
    "channels_mlp_dim": COUNT,
    "inner_size": COUNT,
    "representation_size": integer(1, None),
    "width": COUNT,
    "out_dim": integer(1, None),
    "num_layers": COUNT,
    "num_blocks": COUNT,
    "num_modules": COUNT,
    "num_tokens": COUNT,
    "num_registers": integer(0),
    "num_class_layers": integer(0),
    "depths": integer(0),
    "reattention_layers": integer(0),
    "position_layers": integer(0),
    "reused_layers": integer(0, None),
    "refined_layers": integer(0),
    "refined_expansion": COUNT,
    # Texts, and what is made of both towers.
    "vocab_size": COUNT,
    "max_length": COUNT,
    "num_segments": COUNT,
    "end": integer(0, None),
    "pp.size": COUNT,
    "pp.max_len": COUNT,
    "length": COUNT,
    "temperature_init": above(0),
    "bias_init": Range(also=(None,)),
    "norm_eps": at_least(0),
    # Attention.
    "num_heads": COUNT,
    "inner_heads": COUNT,
    "key_dim": COUNT,
    "head_dim": integer(1, None),
    "window_size": integer(1, None),
    "sr_ratios": COUNT,
    # What is dropped in training, and what scales.
    "dropout_rate": RATE,
    "attention_dropout_rate": RATE,
    "token_dropout_rate": RATE,
    "head_dropout_rate": RATE,
    "drop_path_rate": RATE,
    "layer_scale_init": at_least(0),
    "rescale": at_least(1, also=(None,)),
    "residual_divisor": above(0),
    "stream_scale": above(0),
    "head_bias_init": ANY,
}


# Mappings that hold fields of a part: of the encoder or decoder, and of the towers.
_PARTS = ("image.", "text.", "transformer.", "decoder.")


def range_of(field: str) -> Range | None:
    """The range of a constructor field, which may be that of a part; None without one."""
    for part in _PARTS:
        field = field.removeprefix(part)
    return RANGES.get(field)


def check(config: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError for a constructor field of a model that is out of its range.

    Args:
      config: Constructor fields, nested as a family has them; what else it holds is not looked at.
      prefix: What the message puts before the name of a field.
    """
    for field, value in _flat(config):
        if known := range_of(field):
            known.require(f"{prefix}{field}", value)


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from ((f"{name}.{inner}", x) for inner, x in _flat(value))
        else:
            yield name, value

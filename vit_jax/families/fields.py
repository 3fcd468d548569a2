"""The constructor fields of all families that are numbers, and the range of each.

All families speak one vocabulary, so that a name has one range; `transformer` holds fields of the
encoder, which have the names that other families give them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.ranges import ANY, COUNT, RATE, above, at_least, integer

RANGES = {
    "num_classes": integer(0),
    # What an image is cut into.
    "patch_size": COUNT,
    "patch_sizes": COUNT,
    "patches.size": COUNT,
    "patches.grid": COUNT,
    "image_scales": above(0),
    "kernel_size": COUNT,
    "stride": COUNT,
    "num_convolutions": COUNT,
    "stem_features": integer(1, None),
    "resnet.num_layers": COUNT,
    "resnet.width_factor": above(0),
    # Widths and depths. A branch of a model may have no layers of its own.
    "hidden_size": COUNT,
    "hidden_sizes": COUNT,
    "hidden_dim": COUNT,
    "mlp_dim": COUNT,
    "mlp_ratios": above(0),
    "tokens_mlp_dim": COUNT,
    "channels_mlp_dim": COUNT,
    "inner_size": COUNT,
    "representation_size": integer(1, None),
    "num_layers": COUNT,
    "num_blocks": COUNT,
    "num_class_layers": integer(0),
    "depths": integer(0),
    "reattention_layers": integer(0),
    # Attention.
    "num_heads": COUNT,
    "inner_heads": COUNT,
    "key_dim": COUNT,
    "window_size": integer(1, None),
    "sr_ratios": COUNT,
    # What is dropped in training, and what scales.
    "dropout_rate": RATE,
    "attention_dropout_rate": RATE,
    "drop_path_rate": RATE,
    "layer_scale_init": at_least(0),
    "residual_divisor": above(0),
    "stream_scale": above(0),
    "head_bias_init": ANY,
}


def check(config: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError for a constructor field of a model that is out of its range.

    Args:
      config: Constructor fields, nested as a family has them; what else it holds is not looked at.
      prefix: What the message puts before the name of a field.
    """
    for field, value in _flat(config):
        if known := RANGES.get(field.removeprefix("transformer.")):
            known.require(f"{prefix}{field}", value)


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from ((f"{name}.{inner}", x) for inner, x in _flat(value))
        else:
            yield name, value

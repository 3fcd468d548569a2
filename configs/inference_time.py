"""Measures images per second of a forward pass.

    python -m vit_jax.main --workdir=/tmp/speed --config=configs/inference_time.py \
        --config.batch=32 --config.num_classes=1000 --config.image_size=224
"""

from ml_collections import ConfigDict

from vit_jax.ranges import COUNT, integer

# The range of every field that is a number.
RANGES = {
    "initial_steps": integer(0),
    "steps": COUNT,
    "batch": COUNT,
    "num_classes": COUNT,
    "image_size": COUNT,
}


def get_config() -> ConfigDict:
    config = ConfigDict()
    # See ./models.py.
    config.model_name = "ViT-B_32"
    # What computes attention, as in ./common.py.
    config.attend = "auto"
    # The number of steps before the measurement, and the number of measured steps.
    config.initial_steps = 10
    config.steps = 30
    # These three must be set.
    config.batch = 0
    config.num_classes = 0
    config.image_size = 0
    # Not read here: the original's configs have it, and this one is locked.
    config.pretrained_dir = "."
    # Kept for the original's configs; the workdir is what is written to.
    config.log_dir = "."
    config.trainer = "inference_time"
    return config.lock()

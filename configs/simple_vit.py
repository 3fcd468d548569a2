r"""Trains SimpleViT on ImageNet-1k from scratch.

    vit-jax train --workdir=runs/simple_vit_s --config=configs/simple_vit.py:s16 \
        --config.tfds_data_dir=/data/tensorflow_datasets

Beyer et al. 2022 (arXiv:2205.01580): ./vit_s16_i1k.py with the paper's model, whose positions are
fixed sines and cosines and whose head is one linear layer. Theirs, S/16: 76.5 % after 90 epochs,
80.0 % after 300 (`--config.total_steps=300epochs`). Evaluation resizes the shorter side to 256 and
crops 224 from the middle, bilinearly; the last percent of the training split is held out.
"""

from ml_collections import ConfigDict

from vit_jax.configs import vit_s16_i1k
from vit_jax.errors import chosen
from vit_jax.families.registry import resolve

SIZES = {"s16": "s", "b16": "b", "l16": "l"}


def get_config(model: str = "s16") -> ConfigDict:
    """`model` is `s16`, `b16` or `l16`."""
    config = vit_s16_i1k.get_config()
    spec = resolve(f"simple_vit_{chosen(model, SIZES, 'model')}_16")
    config.model = ConfigDict(spec.config.to_dict())
    config.pp.resize, config.pp.resize_shape = 256, "shortest"
    config.evals = {"minival": {"split": "train[99%:]"}}
    return config

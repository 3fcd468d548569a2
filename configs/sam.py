r"""Trains a ViT on ImageNet-1k from scratch with sharpness-aware minimisation.

    vit-jax train --workdir=runs/sam_b16 --config=configs/sam.py:b16

Chen et al. 2022, "When Vision Transformers Outperform ResNets without Pre-training or Strong Data
Augmentations" (arXiv:2106.01548), section 3 and table 8: AdamW, rate 3e-3, weight decay 0.3, batch
4,096, 300 epochs, 10,000 steps of warm-up, crop and flip only, SAM's radius 0.1 (S/16), 0.2
(B/16). Theirs: S/16 78.1 %, B/16 79.9 %. A step costs two: the gradient is taken twice.

They perturb for the examples of each device on their own; here that is one of `accum_steps` parts
of the batch, 512 examples: more parts come nearer, as long as every device has enough to do.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common, models

BATCH = 4_096
RADIUS = {"s32": 0.05, "s16": 0.1, "b32": 0.15, "b16": 0.2}


def get_config(model: str = "b16") -> ConfigDict:
    """`model` is `s32`, `s16`, `b32` or `b16`."""
    config = common.get_config()
    config.pretrained_dir = None
    config.model = models.by_short_name(model)
    config.dataset = "imagenet2012"
    config.pp.train, config.pp.test, config.pp.crop = "train[:99%]", "validation", 224
    config.sam.rho, config.sam.per_part = RADIUS.get(model, 0.2), True
    config.optim, config.optim_dtype = "adamw", "bfloat16"
    config.weight_decay = 0.3
    config.base_lr, config.warmup_steps = 3e-3, 10_000
    config.batch, config.batch_eval, config.accum_steps = BATCH, BATCH, 8
    config.total_steps = "300epochs"
    config.dtype = "bfloat16"
    config.eval_every, config.checkpoint_every, config.progress_every = 2_000, 1_000, 50
    return config

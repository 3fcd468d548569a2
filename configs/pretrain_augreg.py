r"""Pretrains a ViT or hybrid on ImageNet-21k from scratch, as AugReg did.

    vit-jax train --workdir=gs://my-bucket/runs/s16 --config=configs/pretrain_augreg.py:s16,medium1

Steiner et al. 2021 (arXiv:2106.10270), section 3 and table 4 of the appendix: Adam, batch 4,096,
peak rate 1e-3, weight decay 0.1, 10,000 steps of warm-up, cosine, 300 epochs. Augmentation levels:
their section 3.2. Cost: 4.3 billion images; divide by your images/s. Theirs, after fine-tuning the
best checkpoint on ImageNet-1k at 384 px: S/16 83.7 %, B/16 85.5 %.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common, models
from vit_jax.errors import chosen

BATCH = 4_096

# Name -> alpha of Mixup, operations and magnitude of RandAugment (0: only crop and flip).
LEVELS = {
    "none": (0.0, 0, 0),
    "light1": (0.0, 2, 0),
    "light2": (0.2, 2, 0),
    "medium1": (0.2, 2, 15),
    "medium2": (0.5, 2, 15),
    "strong1": (0.5, 2, 20),
    "strong2": (0.8, 2, 20),
}


def get_config(model_level: str = "s16,medium1") -> ConfigDict:
    """`model_level` is `s16,medium1`: a `get_…_config` of ./models.py, and one of `LEVELS`."""
    model, _, level = model_level.partition(",")
    config = common.get_config()
    config.pretrained_dir = None
    config.model = models.by_short_name(model)
    config.dataset = "imagenet21k"
    config.pp.train, config.pp.test, config.pp.crop = "full[51200:]", "full[:51200]", 224
    mixup, operations, magnitude = chosen(level, LEVELS, "level")
    config.mixing.mixup_alpha = mixup
    if operations:
        config.pp.augment = "randaug"
        config.pp.randaug.num_ops = operations
        config.pp.randaug.magnitude = float(magnitude)
    config.loss = "sigmoid"
    config.init_head_bias = -10.0
    config.optim, config.optim_dtype = "adamw", "bfloat16"
    config.weight_decay = 0.1
    config.base_lr, config.warmup_steps = 1e-3, 10_000
    config.batch, config.batch_eval, config.accum_steps = BATCH, BATCH, 1
    config.total_steps = "300epochs"
    config.dtype = "bfloat16"
    config.eval_every, config.checkpoint_every, config.progress_every = 10_000, 2_000, 50
    return config

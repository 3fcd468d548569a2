r"""Trains DeiT (without distillation) on ImageNet-1k from scratch.

    vit-jax train --workdir=runs/deit_s --config=configs/deit.py:s16
    vit-jax train --workdir=runs/swin_t --config=configs/deit.py:swin_tiny_patch4_window7_224

Touvron et al. 2021 (arXiv:2012.12877), table 9: AdamW, rate 5e-4 · batch / 512, batch 1,024, 300
epochs, weight decay 0.05, RandAugment 9/0.5, Mixup 0.8, CutMix 1.0, erasing 0.25, repeated
augmentation, stochastic depth 0.1, smoothing 0.1. Theirs: Ti 72.2 %, S 79.8 %, B 81.8 % at 224 px;
B took them 53 hours on 8 V100, S less than 3 days on 4.

Most of the survey's models were trained by this recipe with small changes, stochastic depth above
all (see each paper): any of them can be named here.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common
from vit_jax.families.registry import resolve

BATCH = 1_024
SHORT = {
    "ti16": "deit_tiny_patch16_224",
    "s16": "deit_small_patch16_224",
    "b16": "deit_base_patch16_224",
}


def get_config(model: str = "s16") -> ConfigDict:
    """`model` is `ti16`, `s16`, `b16` or a registered name."""
    spec = resolve(SHORT.get(model, model))
    config = common.get_config()
    config.pretrained_dir = None
    config.model = common.with_drop_path(spec.config, 0.1)
    config.dataset = "imagenet2012"
    side = max(spec.preprocess.height_width)
    config.pp.train, config.pp.test, config.pp.crop = "train", "validation", side
    config.pp.augment = "deit"
    config.pp.area_min = 0.08
    config.pp.randaug.num_ops, config.pp.randaug.magnitude = 2, 9.0
    config.pp.randaug.magnitude_std, config.pp.randaug.space = 0.5, "timm"
    config.pp.erasing = 0.25
    config.pp.resize, config.pp.resize_shape = round(side / 0.875), "shortest"
    config.pp.resize_method = "bicubic"
    config.pp.mean, config.pp.std = spec.preprocess.mean, spec.preprocess.std
    config.data.repeats = 3
    config.mixing.mixup_alpha, config.mixing.cutmix_alpha = 0.8, 1.0
    config.label_smoothing = 0.1
    config.optim, config.optim_dtype = "adamw", "float32"
    config.weight_decay = 0.05
    config.grad_norm_clip = None
    config.base_lr, config.lr_scaling.rule, config.lr_scaling.batch = 5e-4, "linear", 512
    config.warmup_steps = "5epochs"
    config.batch, config.batch_eval, config.accum_steps = BATCH, BATCH, 1
    config.total_steps = "300epochs"
    config.dtype = "bfloat16"
    config.eval_every, config.checkpoint_every = "5epochs", "1epoch"
    return config

r"""Trains DeiT III on ImageNet-1k from scratch.

    vit-jax train --workdir=runs/deit3_s --config=configs/deit3.py:s16

Touvron et al. 2022 (arXiv:2204.07118), table 1: LAMB, rate 3e-3 (S) at batch 2,048, 800 epochs,
weight decay 0.05 (as their published commands have it), binary cross-entropy, 3-Augment with
colour jitter 0.3, Mixup 0.8, CutMix 1.0, stochastic depth 0.05 (S), 0.2 (B). Theirs, at 224 px:
S 81.4 %, B 83.8 %.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common
from vit_jax.errors import chosen
from vit_jax.families.registry import resolve

BATCH = 2_048
SIZES = {"s16": "small", "b16": "base"}
DROP_PATH = {"s16": 0.05, "b16": 0.2}


def get_config(model: str = "s16") -> ConfigDict:
    """`model` is `s16` or `b16`."""
    config = common.get_config()
    config.pretrained_dir = None
    spec = resolve(f"deit3_{chosen(model, SIZES, 'model')}_patch16_224")
    config.model = common.with_drop_path(spec.config, DROP_PATH[model])
    config.dataset = "imagenet2012"
    config.pp.train, config.pp.test, config.pp.crop = "train", "validation", 224
    config.pp.augment = "three_augment"
    config.pp.area_min = 0.08
    config.pp.color_jitter = 0.3
    config.pp.resize_method = "bicubic"
    config.pp.mean, config.pp.std = spec.preprocess.mean, spec.preprocess.std
    config.data.repeats = 3
    config.mixing.mixup_alpha, config.mixing.cutmix_alpha = 0.8, 1.0
    config.loss = "multilabel"
    config.optim, config.optim_dtype = "lamb", "float32"
    config.weight_decay = 0.05
    config.base_lr = 3e-3
    config.warmup_steps = "5epochs"
    config.batch, config.batch_eval, config.accum_steps = BATCH, BATCH, 1
    config.total_steps = "800epochs"
    config.dtype = "bfloat16"
    config.eval_every, config.checkpoint_every = "10epochs", "1epoch"
    return config

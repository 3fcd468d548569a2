r"""Trains LV-ViT on ImageNet-1k from scratch by token labelling.

    vit-jax train --workdir=runs/lvvit_s --config=configs/lvvit.py:s \
        --config.token_labels.maps=/data/label_top5_train_nfnet

Jiang et al. 2021 (arXiv:2104.10858) by the commands of the released code: AdamW, rate 1.6e-3 (1e-3
for L) at batch 1,024, 300 epochs, weight decay 0.05, RandAugment 9/0.5 of 2 operations (3 for L),
erasing 0.25, MixToken in the place of Mixup and CutMix, smoothing 0.1, stochastic depth 0.1 (0.2
for M, 0.3 for L), moving average 0.99992. Theirs at 224 px: S 83.3 %, M 84.0 %; they give no
command for T, and figures of L after fine-tuning at 448 px only (86.2 %).

The label maps are those of an NFNet-F6, which the authors offer at
https://github.com/zihangJiang/TokenLabeling, or any in that format, see docs/token_labels.md. What
differs: their rate ends with 10 epochs at 1e-5, ours at 0 after 300; they draw bilinear or bicubic
interpolation for each image, here all are bicubic.
"""

from ml_collections import ConfigDict

from vit_jax.configs import deit
from vit_jax.errors import chosen
from vit_jax.families.registry import resolve

RATES = {"t": 1.6e-3, "s": 1.6e-3, "m": 1.6e-3, "l": 1e-3}


def get_config(model: str = "s") -> ConfigDict:
    """`model` is `t`, `s`, `m` or `l`."""
    rate = chosen(model, RATES, "model")
    config = deit.get_config(f"lvvit_{model}")
    spec = resolve(f"lvvit_{model}")
    config.model = ConfigDict(spec.config.to_dict())
    config.pp.crop, config.pp.resize = 224, spec.preprocess.before_crop(224)
    config.pp.augment = "lvvit"
    config.pp.randaug.num_ops = 3 if model == "l" else 2
    config.data.repeats = 1
    config.mixing.mixup_alpha = config.mixing.cutmix_alpha = 0.0
    config.token_labels.on = True
    config.token_labels.maps = "label_top5_train_nfnet"
    config.token_labels.mixtoken_alpha = 1.0
    config.base_lr, config.lr_scaling.batch = rate, 1_024
    config.ema.decay, config.ema.warmup = 0.99992, False
    return config

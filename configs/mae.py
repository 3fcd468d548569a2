r"""Pretrains a Vision Transformer without labels, as a masked autoencoder.

    vit-jax train --workdir=runs/mae_b16 --config=configs/mae.py:b16
    vit-jax train --workdir=runs/mae_b16_tuned --config=configs/mae_finetune.py:b16 \
        --config.pretrained=runs/mae_b16

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377), table 8:
three quarters of the patches are removed, and a small decoder predicts the pixels of these, each
patch normalised. AdamW (0.9, 0.95), rate 1.5e-4 · batch / 256, batch 4,096, weight decay 0.05,
warm-up of 40 epochs, 800 or 1,600 epochs, a random window of at least a fifth of the area and a
flip. As in the official code nothing of one dimension decays, nor do the fixed positions; the class
and the mask token do. Theirs, fine-tuned after 1,600 epochs: B/16 83.6 %, L/16 85.9 %, H/14 86.9 %.

Pixels as they are: --config.mae.norm_pixels=False. An evaluation tells the reconstruction loss of
held-out images, `loss_test`.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common
from vit_jax.errors import chosen
from vit_jax.families.registry import resolve

MODELS = {
    "b16": "mae_vit_base_patch16",
    "l16": "mae_vit_large_patch16",
    "h14": "mae_vit_huge_patch14",
}


def get_config(model: str = "b16") -> ConfigDict:
    """`model` is `b16`, `l16` or `h14`."""
    spec = resolve(chosen(model, MODELS, "model"))
    config = common.get_config()
    config.pretrained_dir = None
    config.model = spec.config
    config.objective = "mae"
    config.dataset = "imagenet2012"
    config.pp.train, config.pp.test, config.pp.crop = "train", "validation", 224
    config.pp.augment, config.pp.area_min = "random_resized_crop", 0.2
    config.pp.resize, config.pp.resize_shape, config.pp.resize_method = 256, "shortest", "bicubic"
    config.pp.mean, config.pp.std = spec.preprocess.mean, spec.preprocess.std
    config.optim, config.optim_dtype = "adamw", "float32"
    config.optim_b1, config.optim_b2 = 0.9, 0.95
    config.weight_decay = 0.05
    config.decay_rules = ((r"(?:.*/)?(?:kernel|cls|mask_token)", 1.0), (r".*", 0.0))
    config.grad_norm_clip = None
    config.base_lr, config.lr_scaling.rule, config.lr_scaling.batch = 1.5e-4, "linear", 256
    config.warmup_steps = "40epochs"
    config.batch, config.batch_eval, config.accum_steps = 4_096, 4_096, 1
    config.total_steps = "800epochs"
    config.dtype = "bfloat16"
    config.eval_every, config.checkpoint_every = "20epochs", "5epochs"
    return config

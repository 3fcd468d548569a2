r"""Fine-tunes a DINOv3 on ImageNet-1k, at 256 pixels.

    vit-jax train --workdir=gs://my-bucket/runs/huge_plus --config=configs/dinov3.py:huge_plus \
        --config.pretrained=dinov3-vith16plus-pretrain-lvd1689m

Its weights are gated (Siméoni et al. 2025, arXiv:2508.10104; the DINOv3 License): accept it on
their pages, and give the folder or file. Without `pretrained` it starts from random weights. No
accuracy is published for this recipe: rates that grow by a quarter a block towards the head, and
coordinates that are rescaled as in the pretraining. The largest two are split over all chips, and
their activations are computed again: `vit-jax plan` says what fits.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common
from vit_jax.errors import chosen
from vit_jax.families.registry import resolve

BATCH = 1_024
# Size -> stochastic depth, and whether the state is split and the activations computed again.
SIZES = {
    "small": (0.1, False),
    "small_plus": (0.1, False),
    "base": (0.1, False),
    "large": (0.2, False),
    "huge_plus": (0.3, True),
    "7b": (0.4, True),
}


def get_config(model: str = "base") -> ConfigDict:
    """`model` is `small`, `small_plus`, `base`, `large`, `huge_plus` or `7b`."""
    drop_path, is_large = chosen(model, SIZES, "model")
    config = common.get_config()
    config.pretrained_dir = None
    biases = "" if model == "7b" else "_qkvb"
    spec = resolve(f"vit_{model}_patch16_dinov3{biases}")
    config.model = common.with_drop_path(spec.config, drop_path)
    config.model.rescale = 2.0
    config.model.scan = is_large
    config.model.remat = is_large
    if is_large:
        config.mesh.data, config.mesh.fsdp = 1, -1
    config.dataset = "imagenet2012"
    config.pp.train, config.pp.test, config.pp.crop = "train", "validation", 256
    config.pp.augment = "randaug"
    config.pp.randaug.num_ops, config.pp.randaug.magnitude = 2, 9.0
    config.pp.mean, config.pp.std = spec.preprocess.mean, spec.preprocess.std
    config.mixing.mixup_alpha, config.mixing.cutmix_alpha = 0.8, 1.0
    config.optim, config.optim_dtype = "adamw", "bfloat16"
    config.weight_decay = 0.05
    config.layer_decay = 0.75
    config.base_lr, config.warmup_steps = 1e-3, "2epochs"
    config.batch, config.batch_eval, config.accum_steps = BATCH, BATCH, 1
    config.total_steps = "20epochs"
    config.dtype = "bfloat16"
    config.eval_every, config.checkpoint_every = "5epochs", "1epoch"
    return config

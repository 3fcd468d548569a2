r"""Fine-tunes the encoder of a masked autoencoder on ImageNet-1k.

    vit-jax train --workdir=runs/mae_b16_tuned --config=configs/mae_finetune.py:b16 \
        --config.pretrained=runs/mae_b16

`--config.pretrained` is a run of ./mae.py, or a checkpoint of one in any layout that is read; that
of an encoder alone will do, too. What the classifier does not have stays behind by name, and the
log says what: the decoder, and the norm of all tokens, in whose place the mean over the patches is
normalised, by a fresh norm.

He et al. 2022 (arXiv:2111.06377), table 9, and FINETUNE.md of the official code: AdamW, batch
1,024, weight decay 0.05, RandAugment 9/0.5, Mixup 0.8, CutMix 1.0, erasing 0.25, smoothing 0.1,
warm-up of 5 epochs; and for B, L and H a rate of 5e-4, 1e-3 and 1e-3, times batch / 256, that falls
by 0.65, 0.75 and 0.75 from layer to layer, stochastic depth of 0.1, 0.2 and 0.3, and 100, 50 and 50
epochs. Theirs, after 1,600 epochs of pretraining: 83.6 %, 85.9 % and 86.9 %.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from vit_jax.configs import common, deit
from vit_jax.errors import chosen


class Size(NamedTuple):
    model: str
    base_lr: float
    layer_decay: float
    drop_path_rate: float
    epochs: int


SIZES = {
    "b16": Size("vit_base_patch16_avg_224", 5e-4, 0.65, 0.1, 100),
    "l16": Size("vit_large_patch16_avg_224", 1e-3, 0.75, 0.2, 50),
    "h14": Size("vit_huge_patch14_avg_224", 1e-3, 0.75, 0.3, 50),
}


def get_config(model: str = "b16") -> ConfigDict:
    """`model` is `b16`, `l16` or `h14`."""
    size = chosen(model, SIZES, "model")
    config = deit.get_config(size.model)
    config.pretrained_dir = "."  # so that a run without a checkpoint is refused
    config.model = common.with_drop_path(config.model, size.drop_path_rate)
    config.data.repeats = 1
    config.layer_decay = size.layer_decay
    config.base_lr, config.lr_scaling.batch = size.base_lr, 256
    config.total_steps = f"{size.epochs}epochs"
    return config

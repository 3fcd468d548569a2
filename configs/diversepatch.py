r"""Trains DeiT with diverse patches on ImageNet-1k.

    vit-jax train --workdir=runs/diverse_s --config=configs/diversepatch.py:s16

Gong et al. 2021 (arXiv:2104.12753): DeiT's recipe (./deit.py), and three losses that keep the
patches of the last layer apart: their cosines, a contrast with the patches before the first layer,
and a classifier of the patches of mixed images. As in the released code, every image is mixed with
another one in a box of patches, in the place of Mixup and CutMix, and there is no cosine loss:
--config.diversity.form=paper and --config.diversity.cosine=1 are the paper's. Theirs, at 224 px:
B 82.9 %; their README says that the training code does not give this figure at present.

`vit-jax tokens` shows what became of the tokens.
"""

from ml_collections import ConfigDict

from vit_jax.configs import deit
from vit_jax.errors import chosen

MODELS = {"ti16": "tiny", "s16": "small", "b16": "base"}


def get_config(model: str = "s16") -> ConfigDict:
    """`model` is `ti16`, `s16` or `b16`."""
    size = chosen(model, MODELS, "model")
    config = deit.get_config(f"diversepatch_deit_{size}_patch16_224")
    config.objective = "diverse_patches"
    config.mixing.mixup_alpha = config.mixing.cutmix_alpha = 0.0
    return config

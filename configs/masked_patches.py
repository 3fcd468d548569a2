r"""Pretrains a Vision Transformer without labels, by masked patch prediction.

    vit-jax train --workdir=runs/b16_masked --config=configs/masked_patches.py:b16 \
        --config.dataset=imagenet2012
    vit-jax train --workdir=runs/b16_cifar10 --config=configs/vit.py:b16,cifar10 \
        --config.pretrained=runs/b16_masked

Dosovitskiy et al. 2021 (arXiv:2010.11929), section 4.6 and appendix B.1.2: half of the embedded
patches are corrupted (80 % mask token, 10 % another patch, 10 % as they are), and the model
predicts the 3-bit mean colour of each of them, one of 512 classes. Adam, rate 2e-4 with a cosine
decay, batch 4,096, warm-up of 10,000 steps, one million steps (14 epochs) on JFT. They report that
the gains diminish after 100,000 steps, the default here, and are similar after pretraining on
ImageNet. Theirs, ViT-B/16 fine-tuned on ImageNet: 79.9 %, 2 points above training from scratch.

The other targets that they tried are --config.masking.target=mean_colour_4x4 and =pixels. They name
no weight decay, and here there is none. The classes of the images are not looked at. The second
command fine-tunes the result: the head and the mask token stay behind.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common, models
from vit_jax.errors import UserError


def get_config(model: str = "b16") -> ConfigDict:
    """`model` is the short name of a Vision Transformer or hybrid in ./models.py."""
    config = common.get_config()
    config.pretrained_dir = None
    config.model = as_predictor(models.by_short_name(model))
    config.objective = "masked_patches"
    config.dataset = "imagenet2012"
    config.pp.train, config.pp.test = "train", "validation"
    config.optim, config.optim_dtype = "adamw", "float32"
    config.base_lr, config.warmup_steps = 2e-4, 10_000
    config.batch, config.batch_eval, config.accum_steps = 4_096, 4_096, 1
    config.total_steps = 100_000
    config.dtype = "bfloat16"
    config.eval_every = config.checkpoint_every = 1_000
    return config


def as_predictor(model: ConfigDict) -> ConfigDict:
    """A copy of a Vision Transformer's config, with a mask token and an answer for every patch.

    The result has a class token, which learns nothing here, so that every position has its place
    in the model that is fine-tuned. Nothing is dropped.
    """
    model = ConfigDict(model.to_dict())
    if model.get("transformer") is None:
        raise UserError(
            f"{model.model_name} is no Vision Transformer, which masked_patches.py pretrains"
        )
    model.classifier, model.mask_token, model.representation_size = "token_unpooled", True, None
    model.transformer.dropout_rate = model.transformer.attention_dropout_rate = 0.0
    return model

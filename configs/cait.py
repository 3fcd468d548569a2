r"""Trains CaiT on ImageNet-1k from scratch.

    vit-jax train --workdir=runs/cait_xxs24 --config=configs/cait.py:xxs24

Touvron et al. 2021, "Going deeper with Image Transformers" (arXiv:2103.17239), section 5: the
recipe of ./deit.py for 400 epochs at 224 px, and a stochastic depth that grows with the model and
is the same in all of its blocks. The whole resized image is evaluated, without a crop.
The rates are those of the paper's table of models, read at second hand, in another implementation:
the official repository has no command that trains CaiT, and refers to the paper for them.

Theirs at 224 px: XXS-24 78.4 %, XXS-36 79.7 %, S-24 83.5 %. These learned from a RegNetY-16GF too:
`--config.distill.kind=hard --config.distill.teacher_checkpoint=…`, as ./deit_distill.py has it.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common, deit
from vit_jax.errors import chosen
from vit_jax.families.registry import resolve

# Name -> a registered model of this size, and its rate of stochastic depth.
MODELS = {
    "xxs24": ("cait_xxs24_224", 0.05),
    "xxs36": ("cait_xxs36_224", 0.1),
    "xs24": ("cait_xs24_384", 0.05),
    "s24": ("cait_s24_224", 0.1),
    "s36": ("cait_s36_384", 0.2),
    "m36": ("cait_m36_384", 0.3),
}


def get_config(model: str = "xxs24") -> ConfigDict:
    """`model` is `xxs24`, `xxs36`, `xs24`, `s24`, `s36` or `m36`."""
    name, drop_path_rate = chosen(model, MODELS, "model")
    config = deit.get_config(name)
    config.model = common.with_drop_path(resolve(name).config, drop_path_rate)
    config.pp.crop = config.pp.resize = 224
    config.total_steps = "400epochs"
    return config

r"""Fine-tunes an AugReg checkpoint (Steiner et al. 2021, arXiv:2106.10270, section 3.4).

    python -m vit_jax.main --workdir=/tmp/vit --config=configs/augreg.py:R_Ti_16 \
        --config.dataset=oxford_iiit_pet --config.pp.train='train[:90%]' --config.base_lr=0.01

The short name takes the ImageNet-21k checkpoint with the best upstream validation accuracy; a full
file name (without `.npz`) takes that file.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common, models
from vit_jax.errors import UserError, chosen


def get_config(model_or_filename: str = "") -> ConfigDict:
    """`model_or_filename` is `R_Ti_16`, or `R_Ti_16-i21k-300ep-lr_0.001-…`."""
    known = {name: model for name, model in models.AUGREG_CONFIGS.items() if "-" not in name}
    if not model_or_filename:
        raise UserError(
            "expected a model or a file name, as in configs/augreg.py:R_Ti_16. "
            f"Models: {', '.join(known)}"
        )
    model = chosen(model_or_filename.split("-")[0], known, "AugReg model")
    config = common.get_config()
    config.pretrained_dir = "gs://vit_models/augreg"
    config.model_or_filename = model_or_filename
    config.model = model.copy_and_resolve_references()
    config.model.transformer.dropout_rate = 0.0  # AugReg regularises pre-training only.
    config.base_lr = 0.03
    config.total_steps = 500
    config.warmup_steps = 100
    config.pp.resize = 448
    config.pp.crop = 384
    return config

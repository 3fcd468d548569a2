r"""Fine-tunes a Vision Transformer, hybrid or Mixer from a published checkpoint.

    python -m vit_jax.main --workdir=/tmp/vit --config=configs/vit.py:b16,cifar10 \
        --config.pretrained_dir=gs://vit_models/imagenet21k

Dosovitskiy et al. 2021 (arXiv:2010.11929), section 4.1 and appendix B.1.1.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common, models
from vit_jax.errors import UserError, suggest


def get_config(model_dataset: str) -> ConfigDict:
    """`model_dataset` is `b16,cifar10`: a `get_…_config` of ./models.py, and a dataset preset."""
    if model_dataset.count(",") != 1:
        raise UserError(
            f"expected MODEL,DATASET as in configs/vit.py:b16,cifar10; got {model_dataset!r}"
        )
    model, dataset = model_dataset.split(",")
    known = [
        name.removeprefix("get_").removesuffix("_config")
        for name in vars(models)
        if name.startswith("get_") and name.endswith("_config")
    ]
    if model not in known:
        raise UserError(
            f"unknown model {model!r}.{suggest(model, known)} Known: {', '.join(known)}"
        )
    config = common.with_dataset(common.get_config(), dataset)
    config.model = getattr(models, f"get_{model}_config")()
    if (model, dataset) == ("b16", "cifar10"):
        config.base_lr = 0.01
    return config

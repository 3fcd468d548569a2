r"""Fine-tunes a Vision Transformer, hybrid or Mixer from a published checkpoint.

    python -m vit_jax.main --workdir=/tmp/vit --config=configs/vit.py:b16,cifar10 \
        --config.pretrained_dir=gs://vit_models/imagenet21k

Dosovitskiy et al. 2021 (arXiv:2010.11929), section 4.1 and appendix B.1.1.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common, models
from vit_jax.errors import UserError


def get_config(model_dataset: str = "") -> ConfigDict:
    """`model_dataset` is `b16,cifar10`: a `get_…_config` of ./models.py, and a dataset preset."""
    if model_dataset.count(",") != 1:
        raise UserError(
            f"expected MODEL,DATASET as in configs/vit.py:b16,cifar10; got {model_dataset!r}. "
            f"Models: {', '.join(models.short_names())}. "
            f"Datasets: {', '.join(common.DATASET_PRESETS)}"
        )
    model, dataset = model_dataset.split(",")
    config = common.with_dataset(common.get_config(), dataset)
    config.model = models.by_short_name(model)
    if (model, dataset) == ("b16", "cifar10"):
        config.base_lr = 0.01
    return config

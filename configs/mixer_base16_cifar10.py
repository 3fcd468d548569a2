"""Fine-tunes Mixer-B/16 on CIFAR-10 (Tolstikhin et al. 2021, arXiv:2105.01601, appendix)."""

from ml_collections import ConfigDict

from vit_jax.configs import vit


def get_config() -> ConfigDict:
    return vit.get_config("mixer_b16,cifar10")

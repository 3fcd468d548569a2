"""Initialisers of the families that were first written in PyTorch."""

import math
from typing import Any

import jax
from flax import linen as nn

# timm's `trunc_normal_(std=0.02)` cuts at ±2, a hundred standard deviations: a plain normal.
normal_02 = nn.initializers.normal(stddev=0.02)
# PyTorch's default for convolutions and linear layers: U(±1 / √fan_in).
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# He et al. 2015 (arXiv:1502.01852), section 2.2, by outputs; of depthwise kernels by inputs, which
# are as many there, since Flax counts the outputs of all groups together.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# One layer for query, key and value by Glorot and Bengio 2010: it has three times D outputs.
xavier_qkv = nn.initializers.variance_scaling(1 / 2, "fan_in", "uniform")


def xavier_patches(key: jax.Array, shape: tuple[int, ...], dtype: Any = jax.numpy.float32) -> Any:
    """The kernel [height, width, C, D] of patches as that of a linear layer of all their pixels.

    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural
    networks", equation 16; a convolution's has the size of the patch in its outputs too.
    """
    flat = (math.prod(shape[:-1]), shape[-1])
    return nn.initializers.xavier_uniform()(key, flat, dtype).reshape(shape)

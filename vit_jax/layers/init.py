"""Initialisers of the families that were first written in PyTorch."""

from flax import linen as nn

# timm's `trunc_normal_(std=0.02)` cuts at ±2, a hundred standard deviations: a plain normal.
normal_02 = nn.initializers.normal(stddev=0.02)
# PyTorch's default for convolutions and linear layers: U(±1 / √fan_in).
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# He et al. 2015 (arXiv:1502.01852), section 2.2, by outputs; of depthwise kernels by inputs, which
# are as many there, since Flax counts the outputs of all groups together.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

"""Initialisers of the families that were first written in PyTorch."""

from flax import linen as nn

# timm's `trunc_normal_(std=0.02)` cuts at ±2, a hundred standard deviations: a plain normal.
normal_02 = nn.initializers.normal(stddev=0.02)
# PyTorch's default for convolutions and linear layers: U(±1 / √fan_in).
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

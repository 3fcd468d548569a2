"""Normalisation with the constants of the Google families."""

import functools

from flax import linen as nn

# Flax takes mean and variance in float32 whatever the compute type. `use_fast_variance`
# (E[x²] - E[x]²) is the original's choice too; it stays, to match to the last digit.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6)
GroupNorm = functools.partial(nn.GroupNorm, num_groups=32, epsilon=1e-6)

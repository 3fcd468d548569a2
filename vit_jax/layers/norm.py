"""Normalisation with the constants of the Google families, and PyTorch's batch normalisation."""

import functools
from typing import Any

from flax import linen as nn

# Flax takes mean and variance in float32 whatever the compute type. `use_fast_variance`
# (E[x²] - E[x]²) is the original's choice too; it stays, to match to the last digit.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6)
LayerNorm5 = functools.partial(nn.LayerNorm, epsilon=1e-5)  # PyTorch's default
LayerNorm12 = functools.partial(nn.LayerNorm, epsilon=1e-12)  # BERT's
# The same with the variance of centred values: released models with tokens of very large norm lose
# digits by E[x²] - E[x]² in float32.
CentredLayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)
CentredLayerNorm5 = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
GroupNorm = functools.partial(nn.GroupNorm, num_groups=32, epsilon=1e-6)

# Called with `use_running_average=not train`. PyTorch's momentum 0.1 is the weight of the new
# value, Flax's 0.9 that of the old one. PyTorch's running variance is N / (N - 1) of Flax's, N
# being the values per channel: training differs by that, evaluation of converted weights not.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def no_norm(**_: Any) -> Any:
    """The factory of a normalisation that changes nothing."""
    return lambda x: x

"""The stages of a model whose map of tokens shrinks."""

import jax
from flax import linen as nn

# The collection that holds the map of every stage for whoever makes it mutable. It is not
# 'intermediates', which holds attention weights too: a look at maps would compute those as well.
STAGE_MAPS = "stage_maps"


def show_map(module: nn.Module, stage: int, x: jax.Array) -> None:
    """Gives a stage's map [N, H, W, D] to whoever looks at `STAGE_MAPS`, which changes nothing."""
    if not module.is_initializing():  # It is no variable of the model.
        module.sow(STAGE_MAPS, f"stage_map_{stage}", x)

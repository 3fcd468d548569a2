"""The stages of a model whose map of tokens shrinks."""

import functools
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn

from vit_jax.layers.block import Factory, run_blocks
from vit_jax.layers.tokens import map_tokens, prepend_tokens

# The collection that holds the map of every stage for whoever makes it mutable. It is not
# 'intermediates', which holds attention weights too: a look at maps would compute those as well.
STAGE_MAPS = "stage_maps"
Size = tuple[int, int]  # height and width


def show_map(module: nn.Module, stage: int, x: jax.Array) -> None:
    """Gives a stage's map [N, H, W, D] to whoever looks at `STAGE_MAPS`, which changes nothing."""
    if not module.is_initializing():  # It is no variable of the model.
        module.sow(STAGE_MAPS, f"stage_map_{stage}", x)


def run_stages(
    module: nn.Module, x: jax.Array, stages: Sequence[Factory], *, train: bool, first: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Runs stages one after the other, and shows their maps; to be called in a compact method.

    Args:
      x: A map [N, H, W, C].
      stages: Each is called as `stage(name=…)(x, train=…)` and returns what `Stage` does; their
        names are `stage_0`, `stage_1`, …
      first: The number under which the first stage's map is shown.

    Returns:
      What the last stage returned.
    """
    tokens = map_tokens(x)[:, :0]
    for i, stage in enumerate(stages):
        x, tokens = stage(name=f"stage_{i}")(x, train=train)
        show_map(module, first + i, x)
    return x, tokens


class Stage(nn.Module):
    """Embedding, tokens of its own, positions, blocks, norm.

    A map [N, H, W, C] to a map [N, H', W', D] and tokens [N, P, D].

    Attributes:
      blocks: Given height and width of the map, a factory for each block, as `run_blocks` takes
        it. Blocks get the map, or where there are tokens these and the map's, [N, P + H' W', D].
      drop_path_rates: A rate for each block.
      embedding: Called as `factory()(x)`, map to map; it names its module itself, as `positions`
        and `norm` do. None where the map stays as it is.
      tokens: Names of the P tokens that join those of the map, before them.
      positions: Called as `factory()(x)` with what a block gets.
      positions_after: How many blocks run before positions are added.
      norm: Called as `factory()(x)` with what the last block gave.
      block_name: Blocks are called `{block_name}_0`, …
      remat: As in `run_blocks`.
    """

    blocks: Callable[[Size], Sequence[Factory]]
    drop_path_rates: Sequence[float]
    embedding: Factory | None = None
    tokens: Sequence[str] = ()
    positions: Factory | None = None
    positions_after: int = 0
    norm: Factory | None = None
    block_name: str = "encoderblock"
    remat: bool | str = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        if self.embedding is not None:
            x = self.embedding()(x)
        shape = x.shape
        if self.tokens:
            x = prepend_tokens(self, map_tokens(x), *self.tokens)
        blocks = self.blocks((shape[1], shape[2]))
        rates, before = self.drop_path_rates, self.positions_after
        run = functools.partial(run_blocks, name=self.block_name, train=train, remat=self.remat)
        x = run(blocks[:before], x, depth=before, drop_path_rate=rates[:before])
        if self.positions is not None:
            x = self.positions()(x)
        rest = blocks[before:]
        x = run(rest, x, depth=len(rest), drop_path_rate=rates[before:], first=before)
        if self.norm is not None:
            x = self.norm()(x)
        if not self.tokens:
            return x, map_tokens(x)[:, :0]
        return x[:, len(self.tokens) :].reshape(shape), x[:, : len(self.tokens)]

"""What the families share whose stages are a pyramid of maps: Swin, PVT, Twins, CvT."""

from collections.abc import Callable

from vit_jax.checkpoint.tables.family import Config
from vit_jax.checkpoint.tables.parts import CONV, HEADS, NORM, OUT, merged
from vit_jax.families.rules import under

PATCH_EMBEDDING = under("proj", "conv", CONV) + under("norm", "norm", NORM)
# Attention whose keys and values are fewer than its queries.
REDUCED_ATTENTION = (
    under("q", "query", HEADS)
    + under("kv", "", merged(("key", "value")))
    + under("proj", "out", OUT)
)
REDUCTION = under("sr", "reduction/conv", CONV) + under("norm", "reduction/norm", NORM)


def block_points(
    theirs: str, *, part: str = "", ends: tuple[tuple[str, str], ...] = ()
) -> Callable[[Config], list[tuple[str, str]]]:
    """The field `points` of `Names`: every block of every stage.

    Args:
      theirs: The reference's block j of stage i, as a template of {i} and {j}.
      part: Of our block, where `theirs` is not the whole of one.
      ends: Pairs after the blocks.
    """

    def points(config: Config) -> list[tuple[str, str]]:
        blocks = [(i, j) for i, depth in enumerate(config["depths"]) for j in range(depth)]
        found = [(f"stage_{i}/encoderblock_{j}{part}", theirs.format(i=i, j=j)) for i, j in blocks]
        return [*found, *ends]

    return points

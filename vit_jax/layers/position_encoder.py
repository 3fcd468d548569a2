"""The encoder of the Vision Transformer paper's ablation of position embeddings.

Dosovitskiy et al. 2021 (arXiv:2010.11929), appendix D.4 and Table 8: which positions there are, and
where they enter.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError, chosen
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import Block, Factory, google_block, run_blocks
from vit_jax.layers.encoder import Encoder
from vit_jax.layers.init import normal_02
from vit_jax.layers.offsets import offset_scores, offset_tables

Tables = tuple[jax.Array, jax.Array]
KINDS = dict.fromkeys(("none", "learned_1d", "learned_2d", "relative"))
PLACES = dict.fromkeys(("input", "layers", "shared"))


class PositionEncoder(Encoder):
    """As `Encoder`, with one of four kinds of positions at one of three places.

    A class token has a position of its own where positions are added; relative ones are between
    patches only.

    Attributes: as in `Encoder`, with the original's defaults; and
      position: 'none'; 'learned_1d', a vector for each token; 'learned_2d', half a vector for each
        column of patches and half a one for each row; 'relative', a vector for each offset in rows
        and each in columns, whose products with the query are added to the scores.
      where: 'input', before the first layer, or 'relative' ones in the first layer alone; 'layers',
        at the beginning of every layer, each with its own; 'shared', in every layer the same.
      grid: Rows and columns of patches, the last tokens.

    Raises:
      UserError: for another kind or place, and for an odd width of 'learned_2d'.
    """

    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    block: Callable[..., Factory] = google_block
    position: str = "learned_1d"
    where: str = "input"
    grid: tuple[int, int] = (14, 14)

    def prepare(self, x: jax.Array, train: bool) -> jax.Array:
        chosen(self.position, KINDS, "position")
        chosen(self.where, PLACES, "place of positions")
        if self._added and self.where == "input":
            x = _plus(x, self._make_table(name="posembed_input")(x))
        return super().prepare(x, train)

    @property
    def _added(self) -> bool:
        return self.position in ("learned_1d", "learned_2d")

    @property
    def _make_table(self) -> Factory:
        return functools.partial(
            PositionTable, self.grid if self.position == "learned_2d" else None
        )

    def run(self, x: jax.Array, train: bool, **context: Any) -> jax.Array:
        if self.position == "none" or (self._added and self.where == "input"):
            return super().run(x, train, **context)
        return run_blocks(
            self._adding_blocks(x) if self._added else self._relative_blocks(x),
            x,
            depth=self.num_layers,
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rates(),
            remat=self.remat,
            scan=self.scan,
            context=context,
        )

    def _adding_blocks(self, x: jax.Array) -> list[Factory]:
        make = self._make_table
        if self.where == "shared":
            table = make(name="posembed_input")(x)

            def positions(x: jax.Array) -> jax.Array:
                del x
                return table
        else:  # made by each block, inside of it

            def positions(x: jax.Array) -> jax.Array:
                return make(name="posembed")(x)

        block: Any = self.make_block()
        positioned = functools.partial(PositionedBlock, **block.keywords, positions=positions)
        return [positioned] * self.num_layers

    def _relative_blocks(self, x: jax.Array) -> list[Factory]:
        width = x.shape[-1] // self.num_heads
        shared = None
        if self.where == "shared":
            shared = OffsetTables(self.grid, width, name="relative_positions")()
        block: Any = self.make_block()
        attention = block.keywords["attention"]
        relative = functools.partial(
            RelativeAttention,
            *attention.args,
            **attention.keywords,
            grid=self.grid,
            tables=None if shared is None else lambda: shared,
        )
        relative_block = functools.partial(block, attention=relative)
        others = block if self.where == "input" else relative_block
        return [relative_block, *[others] * (self.num_layers - 1)]


class PositionTable(nn.Module):
    """Learned positions of tokens [N, T, D]: [1, T, D].

    Attributes:
      grid: None for a vector for each token, `pos_embedding` [1, T, D]. Else rows and columns of
        the patches: the first half of a vector is its column's, `columns` [columns, D / 2], the
        second its row's, `rows` [rows, D / 2]; tokens before the patches have vectors of their own,
        `others` [1, T - rows · columns, D].
    """

    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        length, width = x.shape[1:]
        if self.grid is None:
            return self.param("pos_embedding", normal_02, (1, length, width))
        if width % 2:
            raise UserError(f"positions of two halves need an even width; got {width}")
        rows, columns = self.grid
        by_column = self.param("columns", normal_02, (columns, width // 2))
        by_row = self.param("rows", normal_02, (rows, width // 2))
        shape = (rows, columns, width // 2)
        halves = [
            jnp.broadcast_to(by_column[None], shape),
            jnp.broadcast_to(by_row[:, None], shape),
        ]
        table = jnp.concatenate(halves, axis=-1).reshape(1, rows * columns, width)
        if not (others := length - rows * columns):
            return table
        return jnp.concatenate([self.param("others", normal_02, (1, others, width)), table], axis=1)


def _plus(x: jax.Array, table: jax.Array) -> jax.Array:
    return x + table.astype(x.dtype)


class PositionedBlock(Block):
    """A block of tokens to which positions are added first.

    Attributes: as in `Block`; and
      positions: Tokens [N, T, D] to [1, T, D]; called inside the block.
    """

    positions: Callable[[jax.Array], jax.Array] = jnp.zeros_like

    @nn.compact
    def __call__(
        self, x: jax.Array, drop_path_rate: float | jax.Array, *, train: bool, **context: Any
    ) -> jax.Array:
        return super().__call__(_plus(x, self.positions(x)), drop_path_rate, train=train, **context)


class OffsetTables(nn.Module):
    """What `offset_tables` makes, for several layers."""

    grid: tuple[int, int]
    width: int

    @nn.compact
    def __call__(self) -> Tables:
        return offset_tables(self, self.grid, self.width)


class RelativeAttention(MultiHeadDotProductAttention):
    """Attention whose scores have a bias: the query times vectors of the key's offset, over √d.

    Attributes: as in `MultiHeadDotProductAttention`; and
      grid: Rows and columns of patches, the last tokens; between others and these there is no bias.
      tables: Gives the vectors; None has the layer learn its own, as in `offset_tables`.
    """

    grid: tuple[int, int] = (14, 14)
    tables: Callable[[], Tables] | None = None

    def _separate(self, x: jax.Array, heads: Any, attend: Callable[..., jax.Array], **fields: Any):
        rows, columns = (
            offset_tables(self, self.grid, heads.width) if self.tables is None else self.tables()
        )

        def biased(q: jax.Array, k: jax.Array, v: jax.Array, *, bias: Any, **others: Any):
            del bias  # a plain block has none
            first = q.shape[1] - self.grid[0] * self.grid[1]
            cells = q[:, first:].reshape(q.shape[0], *self.grid, *q.shape[2:])
            scores = offset_scores(cells * heads.width**-0.5, rows, columns)
            scores = jnp.pad(scores, ((0, 0), (0, 0), (first, 0), (first, 0)))
            return attend(q, k, v, bias=scores, **others)

        return super()._separate(x, heads, biased, **fields)

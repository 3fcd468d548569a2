"""A plain Transformer as a text tower, which reads its last token.

Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning" (arXiv:2111.07991),
section 5.3. Fields and parameter names are those of the original code. Sizes:
`vit_jax.configs.models`.
"""

from typing import Any

import jax
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.layers.block import google_block
from vit_jax.layers.encoder import Encoder
from vit_jax.layers.precision import widened
from vit_jax.layers.text_model import Embedded, TextModel


class TextTransformer(TextModel):
    """Tokens [N, L] to embeddings [N, num_classes], float32 or wider; every token sees every other.

    Attributes:
      num_classes: Outputs of the linear head; 0 returns the features [N, width].
      width: D, the width of a token.
      vocab_size: Tokens; an id that is none of them gives NaN.
      dropout_rate: As in `Encoder`.
      remat, scan: As in `run_blocks`.
      dtype: Type to compute in; None follows the parameters.

    Raises:
      UserError: for tokens that are none, or of another length than the parameters.
    """

    num_classes: int
    width: int = 512
    num_layers: int = 12
    mlp_dim: int = 2048
    num_heads: int = 8
    dropout_rate: float = 0.0
    vocab_size: int = 32_000
    model_name: str | None = None
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> Embedded:
        """Returns the embedding, and 'embedded' [N, L, D], 'pre_logits' and 'logits' by name."""
        near = nn.initializers.normal(stddev=self.width**-0.5)
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=near, dtype=self.dtype, name="Embed_0"
        )
        x = embed(tokens)
        out = {"embedded": x}
        x = x + self._positions(near, x.shape[1]).astype(x.dtype)
        x = Encoder(
            num_layers=self.num_layers,
            mlp_dim=self.mlp_dim,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            block=google_block,
            remat=self.remat,
            scan=self.scan,
            dtype=self.dtype,
            name="Encoder_0",
        )(x, train=train)
        # Texts are filled up with the token that ends them, so that the last one always is that.
        x = out["pre_logits"] = widened(x[:, -1])
        if self.num_classes:
            x = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
            x = out["logits"] = widened(x)
        return x, out

    def _positions(self, init: Any, length: int) -> jax.Array:
        """[1, L, D]."""
        if self.has_variable("params", "pos_embedding"):
            known = self.get_variable("params", "pos_embedding").shape[1]
            if known != length:
                raise UserError(
                    f"expected texts of {known} tokens, as the parameters are for, got {length}; "
                    "cut them or fill them up"
                )
        return self.param("pos_embedding", init, (1, length, self.width))

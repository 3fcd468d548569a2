"""Two towers, one for images and one for texts, whose outputs lie in one space.

What LiT, SigLIP and CLIP share: each family has a class of its own, whose fields have the defaults
of its paper. The names of parameters are big_vision's: `img/…`, `txt/…`, `t` and `b`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.families import towers as family
from vit_jax.models import from_config

Output = tuple[jax.Array | None, jax.Array | None, dict[str, jax.Array]]


class TwoTowerModel(nn.Module):
    """Images [N, H, W, 3] and tokens [N, L] to unit vectors, [N, D] each.

    Attributes:
      image: Config of the image tower, of any family of image models; without `family` it is a
        Vision Transformer's.
      text_model: The family of the text tower, such as 'bert' or 'text_transformer'.
      text: Config of the text tower.
      out_dim: Outputs of the heads of the image and the text tower, None for no head; a number
        stands for both.
      temperature_init: What the temperature `exp(t)` is before training: 1 in the original code of
        LiT, 10 where it is trained.
      bias_init: What `b` is before training, which the sigmoid loss adds to the scores (Zhai et al.
        2023, arXiv:2303.15343, section 3.2); None has no `b`.
      norm_eps: Added to the length by which a vector is divided: 1e-8 in big_vision, 0 elsewhere.
      dtype: Type in which the towers compute; None follows inputs and parameters. Unit vectors are
        float32 or wider.

    Raises:
      UserError: without images and tokens, and as the towers do.
    """

    image: Mapping[str, Any]
    text_model: str
    text: Mapping[str, Any]
    out_dim: int | tuple[int | None, int | None]
    model_name: str | None = None
    temperature_init: float = 1.0
    bias_init: float | None = None
    norm_eps: float = 1e-8
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array | None = None,
        tokens: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> Output:
        """The towers whose input is given.

        Returns:
          Images and texts as unit vectors, None for those that are not given; and by name: what
          the text tower computes (`txt/…`), `img/norm` and `txt/norm` [N, 1], `img/normalized` and
          `txt/normalized`, the temperature `t` [1], and `b` [1] if there is one. The scores of
          texts for images are t * ztxt @ zimg.T, and b is added to them.
        """
        if images is None and tokens is None:
            raise UserError("expected images, tokens, or both; got neither")
        zimg, ztxt, out = None, None, {}
        if tokens is not None:
            ztxt, seen = self._tower("txt")(tokens, train=train)
            out |= {f"txt/{name}": value for name, value in seen.items()}
            ztxt, out["txt/norm"] = _unit(ztxt, self.norm_eps)
            out["txt/normalized"] = ztxt
        if images is not None:
            zimg, out["img/norm"] = _unit(self._tower("img")(images, train=train), self.norm_eps)
            out["img/normalized"] = zimg
        start = nn.initializers.constant(math.log(self.temperature_init))
        out["t"] = jnp.exp(self.param("t", start, (1,), jnp.float32))
        if self.bias_init is not None:
            out["b"] = self.param("b", nn.initializers.constant(self.bias_init), (1,), jnp.float32)
        return zimg, ztxt, out

    def _tower(self, branch: str) -> nn.Module:
        fields = vars(self)
        heads, towers = family.heads(fields), family.towers(fields)
        fields = {"dtype": self.dtype, **towers[branch]}
        return from_config(fields, num_classes=heads[branch], name=branch)


def _unit(z: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """Vectors [N, D] divided by their length + eps, and their length [N, 1]."""
    norm = jnp.linalg.norm(z, axis=1, keepdims=True)
    return z / (norm + eps), norm

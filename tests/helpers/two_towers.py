"""A model of images and texts that compiles in a moment: two layers a tower."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class TinyTowers(nn.Module):
    """Called as LiT's model is: `(images, tokens, train)` to (zimg, ztxt, out).

    The tree is `img/…`, `txt/…`, `t` and, with `bias`, `b`; a tower without input gives None.
    """

    bias: bool = False
    width: int = 8

    @nn.compact
    def __call__(self, images=None, tokens=None, *, train: bool = False):
        zimg = ztxt = None
        if images is not None:
            x = images.mean(axis=(1, 2))
            zimg = _unit(nn.Dense(self.width, name="img")(x))
        if tokens is not None:
            x = nn.Embed(64, self.width, name="txt")(tokens).mean(axis=1)
            ztxt = _unit(nn.Dropout(0.1)(x, deterministic=not train))
        out = {"t": jnp.exp(self.param("t", nn.initializers.constant(2.3), (1,)))}
        if self.bias:
            out["b"] = self.param("b", nn.initializers.constant(-2.71), (1,))
        return zimg, ztxt, out


def _unit(x: jax.Array) -> jax.Array:
    return x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-8)

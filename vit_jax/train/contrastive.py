"""Contrastive learning: which text of the whole batch belongs to an image, and the other way round.

Two towers turn an image and its text into unit vectors. The loss is that of CLIP (Radford et al.
2021, arXiv:2103.00020, figure 3), with which LiT trains a text tower beside a locked image tower
(Zhai et al. 2022, arXiv:2111.07991, section 3), or the sigmoid loss of SigLIP (Zhai et al. 2023,
arXiv:2303.15343, section 3).

The negatives of a pair are all others of the global batch, on whichever device or process they are.
Of the N × N scores a part of the rows is computed at a time, and once more in the backward pass, so
that memory grows with N and not with its square.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError, chosen
from vit_jax.families.towers import IMAGE
from vit_jax.layers.precision import widened
from vit_jax.train import batch_parts

Batch = Mapping[str, jax.Array]
# What the model gives beside the vectors: 't' [1], the factor of the scores, and 'b' [1], their
# bias, if it has one.
Out = Mapping[str, jax.Array]
Figures = dict[str, jax.Array]


def softmax_loss(zimg: jax.Array, ztxt: jax.Array, out: Out, rows: int) -> Figures:
    """Cross-entropy of the right text among all texts, and of the right image among all images.

    With s_ij = t · zimg_i · ztxt_j it is ½ (logsumexp_j s_ij - s_ii) + ½ (logsumexp_j s_ji - s_ii)
    for the pair i.

    Args:
      zimg, ztxt: Unit vectors [N, D]; row i of both is a pair.
      out: What the model gives besides, see `Out`.
      rows: The number of rows of scores that are computed at a time, at most.

    Returns:
      'loss', 'image_to_text_loss' and 'text_to_image_loss', [N] each.
    """

    def entropy(scores: jax.Array, right: jax.Array, own: jax.Array) -> jax.Array:
        del own
        return jax.nn.logsumexp(scores, axis=1) - right

    to_text = _by_rows(entropy, zimg, ztxt, out, rows)
    to_image = _by_rows(entropy, ztxt, zimg, out, rows)
    loss = (to_text + to_image) / 2
    return {"loss": loss, "image_to_text_loss": to_text, "text_to_image_loss": to_image}


def sigmoid_loss(zimg: jax.Array, ztxt: jax.Array, out: Out, rows: int) -> Figures:
    """Σ_j -log sigmoid(y_ij (s_ij + b)), y being 1 for a pair and -1 otherwise, for each image i.

    Arguments are those of `softmax_loss`.

    Returns:
      'loss', [N].

    Raises:
      UserError: if the model has no bias.
    """
    if "b" not in out:
        raise UserError(
            "contrastive.loss='sigmoid' needs a model with a bias of the scores, the parameter "
            "'b', which this one lacks; configs/lit.py sets it up"
        )

    def binary(scores: jax.Array, right: jax.Array, own: jax.Array) -> jax.Array:
        del right
        return jax.nn.softplus(jnp.where(own, -scores, scores)).sum(axis=1)

    return {"loss": _by_rows(binary, zimg, ztxt, out, rows)}


LOSSES: dict[str, Callable[[jax.Array, jax.Array, Out, int], Figures]] = {
    "softmax": softmax_loss,
    "sigmoid": sigmoid_loss,
}


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The objective of a run whose model is called with images and tokens.

    Attributes:
      loss: A key of `LOSSES`.
      rows: As in `softmax_loss`.

    Raises:
      UserError: for an unknown loss.
    """

    loss: str = "softmax"
    rows: int = 1024

    def __post_init__(self):
        chosen(self.loss, LOSSES, "contrastive.loss")

    def draw(self, key: jax.Array, batch: Batch) -> tuple[Batch, dict[str, Any]]:
        """The batch, and the tokens [N, L] that the model is called with; nothing is drawn."""
        del key
        return batch, {"tokens": batch["tokens"]}

    def losses(self, heads: tuple[Any, ...], batch: Batch) -> Figures:
        """The losses of each pair, and 't' and 'b' of the model, [1]; see `LOSSES`."""
        del batch  # Every text belongs to the image of the same row.
        zimg, ztxt, out = heads[0]
        learned = {name: out[name] for name in ("t", "b") if name in out}
        return LOSSES[self.loss](zimg, ztxt, learned, self.rows) | learned


def with_directions(params: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    """The same parameters, with a drawn kernel for an image tower's head of zeros.

    A Vision Transformer's fresh head gives zeros, which have no direction, and nothing to learn
    from. As in the training code of LiT (big_vision), it is drawn as LeCun et al. 1998 propose.
    """
    head = params.get(IMAGE, {}).get("head", {})
    if "kernel" not in head:
        return params
    drawn = jax.nn.initializers.lecun_normal()(key, head["kernel"].shape, head["kernel"].dtype)
    kernel = jnp.where(jnp.any(head["kernel"]), head["kernel"], drawn)
    return {**params, IMAGE: {**params[IMAGE], "head": {**head, "kernel": kernel}}}


def _by_rows(
    loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    queries: jax.Array,
    keys: jax.Array,
    out: Out,
    rows: int,
) -> jax.Array:
    """`loss` of the scores of each query with all keys, [N].

    Args:
      loss: (Scores [R, N], the right ones among them [R], where these are [R, N]) to [R].
      queries, keys: Unit vectors [N, D]; the right key of query i is key i.
      out: See `Out`.
      rows: The number R of queries at a time, at most.
    """
    # The vectors of a part are smaller than its scores, and multiplied by t in their place.
    queries, keys = out["t"].reshape(1, 1) * widened(queries), widened(keys)
    number = jnp.arange(len(queries))

    def part(queries: jax.Array, own_key: jax.Array, own: jax.Array) -> jax.Array:
        # Scores are as large as t, so that rounding to bfloat16, a TPU's default, would be seen.
        scores = jnp.matmul(queries, keys.T, precision="highest")
        right = (queries * own_key).sum(axis=1)
        if "b" in out:
            b = out["b"].reshape(())
            scores, right = scores + b, right + b
        return loss(scores, right, own[:, None] == number[None])

    pairs = queries, keys, number
    parts = _parts(len(queries), rows)
    if parts == 1:
        return part(*pairs)
    # Without the checkpoint the scores of all parts would be kept for the backward pass.
    again = jax.checkpoint(lambda pairs: part(*pairs))
    filled = batch_parts.pad(pairs, 1, parts)
    found = batch_parts.join(jax.lax.map(again, batch_parts.split(filled, parts)))
    return found[: len(queries)]


def _parts(count: int, rows: int) -> int:
    """A number of parts of at most `rows` rows, where possible of equally many, and few."""
    least = -(-count // rows)
    return next((n for n in range(least, 2 * least) if count % n == 0), least)

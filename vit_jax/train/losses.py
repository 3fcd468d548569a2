"""Losses: logits [N, K] and labels [N, K] give one number per example, [N], in float32 or wider."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from vit_jax.configs import common
from vit_jax.errors import UserError, suggest
from vit_jax.layers.precision import widened

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-Σ labels · log softmax(logits).

    `labels` are probabilities, one-hot or soft.
    """
    return -jnp.sum(labels * jax.nn.log_softmax(widened(logits)), axis=-1)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The sum over the classes of the binary cross-entropy (arXiv:2006.07159, section 5).

    `labels` are independent probabilities in [0, 1]; they need not add up to one.
    """
    return _binary(logits, labels).sum(axis=-1)


def multilabel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the classes of the binary cross-entropy with labels that are 0 or 1.

    Every label above 0 counts as 1, because a mixture of two images shows the classes of both
    images, whatever their shares (DeiT III, arXiv:2204.07118, section 3.2).
    """
    return _binary(logits, (labels > 0).astype(labels.dtype)).mean(axis=-1)


LOSSES: dict[str, Loss] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
    "multilabel": multilabel_cross_entropy,
}


def get_loss(name: str, label_smoothing: float = 0.0) -> Loss:
    """The loss called `name`, applied to labels that are smoothed by ε = `label_smoothing`.

    Smoothed labels are (1 - ε) labels + ε / K (Szegedy et al. 2016, arXiv:1512.00567, section 7).

    Raises:
      UserError: for an unknown loss, for an ε outside [0, 1), or for smoothing with 'multilabel',
        because smoothed labels are all above 0 and every class would count as present.
    """
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}.{suggest(name, LOSSES)} Known: {', '.join(LOSSES)}")
    common.check({"label_smoothing": label_smoothing})
    loss = LOSSES[name]
    if not label_smoothing:
        return loss
    if name == "multilabel":
        raise UserError(
            f"label_smoothing={label_smoothing} with loss='multilabel', whose labels are 0 or 1; "
            "use loss='sigmoid', or no smoothing"
        )

    def smoothed(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return loss(logits, smooth_labels(labels, label_smoothing))

    return smoothed


def of_heads(loss: Loss) -> Callable[[Sequence[jax.Array], Mapping[str, jax.Array]], jax.Array]:
    """The mean of `loss` over the logits of a model's heads.

    All heads learn the same label and have the same weight; this is how a model with a distillation
    head trains without a teacher. If a head gives logits for every token, [N, …, K], its loss is
    the mean over the tokens.

    Returns:
      A function of (logits of each head, batch) to [N].
    """

    def of_head(logits: jax.Array, labels: jax.Array) -> jax.Array:
        tokens = tuple(range(1, logits.ndim - 1))
        return loss(logits, jnp.expand_dims(labels, tokens)).mean(axis=tokens)

    def of_all(heads: Sequence[jax.Array], batch: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.mean(jnp.stack([of_head(x, batch["label"]) for x in heads]), axis=0)

    return of_all


def smooth_labels(labels: jax.Array, amount: float) -> jax.Array:
    """(1 - amount) labels + amount / K, for labels [..., K]; rows that sum to one still do."""
    return (1.0 - amount) * labels + amount / labels.shape[-1]


def init_head_bias(params: dict[str, Any], value: float) -> dict[str, Any]:
    """The same parameters with the head's bias set to `value`.

    With a sigmoid loss over K classes, a bias of about -log K makes every class improbable at the
    start of training (arXiv:2006.07159, section 5); a bias of 0 would give every class probability
    one half.

    Raises:
      UserError: if the parameters contain no 'head/bias'.
    """
    head = params.get("head", {})
    if "bias" not in head:
        raise UserError(f"init_head_bias={value}, but the model has no parameter 'head/bias'")
    return {**params, "head": {**head, "bias": jnp.full_like(head["bias"], value)}}


def _binary(logits: jax.Array, labels: jax.Array) -> jax.Array:
    logits = widened(logits)
    return -(labels * log_sigmoid(logits) + (1.0 - labels) * log_sigmoid(-logits))

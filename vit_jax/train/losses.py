"""Losses: logits [N, K] and labels [N, K] to one number an example, [N], in float32 or wider."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from vit_jax.errors import UserError, suggest
from vit_jax.layers.precision import widened

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-Σ labels · log softmax(logits).

    `labels` are probabilities, one-hot or soft.
    """
    return -jnp.sum(labels * jax.nn.log_softmax(widened(logits)), axis=-1)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Σ over the classes of the binary cross-entropy (Beyer et al. 2020, arXiv:2006.07159, 5).

    `labels` are independent probabilities in [0, 1]; they need not add up to one.
    """
    return _binary(logits, labels).sum(axis=-1)


def multilabel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the classes of the binary cross-entropy, where a class is present or is not.

    Every label above 0 counts as 1: a mixture of two images holds the classes of both, whatever
    their shares (DeiT III, Touvron et al. 2022, arXiv:2204.07118, section 3.2).
    """
    return _binary(logits, (labels > 0).astype(labels.dtype)).mean(axis=-1)


LOSSES: dict[str, Loss] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
    "multilabel": multilabel_cross_entropy,
}


def get_loss(name: str, label_smoothing: float = 0.0) -> Loss:
    """The loss of that name, on labels smoothed by `label_smoothing`, ε.

    Smoothed labels are (1 - ε) labels + ε / K (Szegedy et al. 2016, arXiv:1512.00567, section 7).

    Raises:
      UserError: for an unknown loss, an ε outside [0, 1), or smoothing of 'multilabel', which
        would make every class a present one.
    """
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}.{suggest(name, LOSSES)} Known: {', '.join(LOSSES)}")
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing={label_smoothing}; expected 0 <= label_smoothing < 1")
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

    All heads are told the same label and count alike, as models with a head for a teacher train
    without one. Where a head gives logits for tokens, [N, …, K], it is their mean.

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
    """(1 - amount) labels + amount / K; rows [..., K] that add up to one still do."""
    return (1.0 - amount) * labels + amount / labels.shape[-1]


def init_head_bias(params: dict[str, Any], value: float) -> dict[str, Any]:
    """The same parameters with the head's bias set to `value`.

    With a sigmoid loss over many classes, about -log K makes the first predictions rare instead
    of even (arXiv:2006.07159, section 5).

    Raises:
      UserError: when there is no 'head/bias'.
    """
    head = params.get("head", {})
    if "bias" not in head:
        raise UserError(f"init_head_bias={value}, but the model has no parameter 'head/bias'")
    return {**params, "head": {**head, "bias": jnp.full_like(head["bias"], value)}}


def _binary(logits: jax.Array, labels: jax.Array) -> jax.Array:
    logits = widened(logits)
    return -(labels * log_sigmoid(logits) + (1.0 - labels) * log_sigmoid(-logits))

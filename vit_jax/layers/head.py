"""The linear classifier, what a model without one returns, and models with several."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.init import normal_02
from vit_jax.layers.precision import widened
from vit_jax.layers.tokens import exchange_tokens

# The collection in which a model with several heads shows what each of them gives.
HEADS = "heads"


def classify(
    x: jax.Array,
    num_classes: int,
    *,
    use_bias: bool = True,
    kernel_init: Callable[..., jax.Array] = normal_02,
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros,
    dtype: Any = None,
    name: str = "head",
) -> jax.Array:
    """Features [N, …, D] to logits [N, …, num_classes], float32 or wider; 0 classes: the features.

    To be called in a compact method: it adds a layer called `name`.
    """
    if num_classes:
        x = nn.Dense(
            num_classes,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            name=name,
        )(x)
    return widened(x)


def two_heads(module: nn.Module, first: jax.Array, second: jax.Array) -> jax.Array:
    """The mean of what two heads give, in training and in evaluation alike; it shows both."""
    show_heads(module, first, second)
    return (first + second) / 2


def classify_tokens(
    module: nn.Module,
    x: jax.Array,
    num_classes: int,
    mix: jax.Array | None,
    *,
    dtype: Any = None,
) -> jax.Array:
    """The class token's logits plus half of the largest of the patches', [N, num_classes].

    Class token and patches [N, 1 + T, D] have a head each, `head` and `head_tokens`, and what they
    give is shown: [N, num_classes] and [N, T, num_classes]. Jiang et al. 2021 (LV-ViT,
    arXiv:2104.10858), section 3.2. To be called once, in the compact method of the model.

    Args:
      mix: Patches [rows, columns] that were taken from another image, as in `exchange_tokens`;
        their logits are given where they came from.
    """
    logits = classify(x[:, 0], num_classes, dtype=dtype)
    of_tokens = classify(x[:, 1:], num_classes, dtype=dtype, name="head_tokens")
    of_tokens = exchange_tokens(of_tokens, mix)
    show_heads(module, logits, of_tokens)
    return logits + of_tokens.max(axis=1) / 2


def show_heads(module: nn.Module, *heads: jax.Array) -> None:
    """Gives what each head gives, in this order, to whoever looks at `HEADS`; see `heads_of`.

    That of the classes comes first. To be called once, in the compact method of the model.
    """
    if not module.is_initializing():  # It is no variable of the model.
        module.sow(HEADS, "all", heads)


def heads_of(output: Any, state: Mapping[str, Any]) -> tuple[Any, ...]:
    """What each head gives, of what `output, state = model.apply(…, mutable=[HEADS])` returned.

    A model with one head shows none: what it returns is what its head gives.
    """
    shown = state.get(HEADS)
    return (output,) if shown is None else shown["all"][0]

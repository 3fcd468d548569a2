"""Rules (regex, value) for parameters: which ones decay, how fast they learn, which are frozen.

The first rule whose regex matches the whole name decides. The names are those of checkpoint files,
such as 'Transformer/encoderblock_3/…'. Stacked (scanned) blocks get one value per layer.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vit_jax.checkpoint.stacked import stacked_names
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.families import registry

T = TypeVar("T")
Rules = Sequence[tuple[str, T]]

_BLOCK = r"(?:.*/)?(?:encoderblock|MixerBlock)_{}/.*"
_EMBEDDING = (
    r"(?:cls|dist|registers|mask_token|embedding|stem\w*|tokenizer|tokens_\d+|positions_\d+|conv_root|gn_root|block\d+|"
    r"(?:Transformer/)?posembed_\w+)(?:/.*)?"
)
_OUTPUT = (
    r"(?:.*/)?(?:encoder_norm|pre_head_layer_norm|fc_norm|pre_logits|attention_pool|"
    r"layerwise_attention|head\w*)/.*"
)


def parse_rules(rules: Rules[T], field: str) -> list[tuple[re.Pattern[str], T]]:
    """The rules with compiled patterns.

    Raises:
      UserError: if a rule is not a pair (regex, value); the message names `field`.
    """
    parsed = []
    for rule in rules:
        try:
            pattern, value = rule
            parsed.append((re.compile(pattern), value))
        except (TypeError, ValueError, re.error) as e:
            raise UserError(f"{field}: {rule!r} is not a pair (regex, value): {e}") from e
    return parsed


def match_rules(
    rules: Rules[T], names: Iterable[str], field: str, *, partly: bool = False
) -> dict[str, T]:
    """The value of each name by the first rule that matches the whole name.

    Args:
      rules: The rules in their order.
      names: The parameters' names.
      field: The config field that holds the rules, for error messages.
      partly: Whether `names` are a part of the model's, in which a rule may decide nothing.

    Raises:
      UserError: for a name that no rule matches, and for a rule that decides nothing, because it
        matches no name or because earlier rules match the same names.
    """
    patterns = [pattern for pattern, _ in parse_rules(rules, field)]
    values: dict[str, T] = {}
    uncovered: list[str] = []
    deciding: set[int] = set()
    names = list(names)
    for name in names:
        i = next((i for i, pattern in enumerate(patterns) if pattern.fullmatch(name)), None)
        if i is None:
            uncovered.append(name)
        else:
            deciding.add(i)
            values[name] = rules[i][1]
    if uncovered:
        raise UserError(
            f"{field}: no rule matches {_some(uncovered)}; add a rule for the rest, ('.*', value)"
        )
    if partly:
        return values
    idle = [pattern for i, pattern in enumerate(patterns) if i not in deciding]
    if missing := [p.pattern for p in idle if not any(p.fullmatch(name) for name in names)]:
        raise UserError(f"{field}: no parameter matches {_some(missing)}; there are {_some(names)}")
    if idle:
        raise UserError(
            f"{field}: {_some([p.pattern for p in idle])} decides nothing, because earlier rules "
            "match the same parameters; move it up or leave it out"
        )
    return values


def per_parameter(rules: Rules[float], params: Any, field: str, *, partly: bool = False) -> Any:
    """A tree like `params` that holds one number for every leaf, as the rules say.

    For a leaf of stacked blocks [L, …] whose layers have different values, it holds an array
    [L, 1, …] of the same rank. With `partly`, a rule may decide nothing, see `match_rules`.

    Raises:
      UserError: as `match_rules` does, and for a value that is neither a number nor a bool.
    """
    for pattern, value in parse_rules(rules, field):
        if not isinstance(value, (bool, int, float)):
            raise UserError(f"{field}: {pattern.pattern!r} has {value!r}; expected a number")
    leaves, treedef = _named_leaves(params)
    stored = stacked_names({name: leaf.shape for name, leaf in leaves.items()})
    layers: dict[str, list[float]] = {name: [] for name in leaves}
    for name, value in match_rules(rules, stored, field, partly=partly).items():
        layers[stored[name][0]].append(value)
    return treedef.unflatten(
        values[0] if len(set(values)) == 1 else np.reshape(values, (-1,) + (1,) * (leaf.ndim - 1))
        for values, leaf in zip(layers.values(), leaves.values(), strict=True)
    )


def stack_depths(params: Any) -> Any:
    """A tree like `params` with the number of layers that a leaf stacks, and 0 for other leaves."""
    leaves, treedef = _named_leaves(params)
    stored = stacked_names({name: leaf.shape for name, leaf in leaves.items()})
    stacked = {name for name, layer in stored.values() if layer is not None}
    return treedef.unflatten(x.shape[0] if name in stacked else 0 for name, x in leaves.items())


def layer_decay_rules(decay: float, params: Any) -> list[tuple[str, float]]:
    """Rules for learning-rate multipliers that shrink by `decay` per layer from the head down.

    The embedding (patches, class token, positions) is layer 0, block i of L is layer i + 1, and
    what comes after the blocks (norm, pooling, heads) is layer L + 1: the multiplier is
    decay^(L + 1 - layer) (BEiT, Bao et al. 2022, arXiv:2106.08254, appendix, "layer-wise learning
    rate decay").

    Raises:
      UserError: for a decay outside (0, 1], or parameters without blocks. Where blocks stand in
        stages, or parts beside them, no rule matches those, which is an error too.
    """
    common.check({"layer_decay": decay})
    leaves, _ = _named_leaves(params)
    names = stacked_names({name: leaf.shape for name, leaf in leaves.items()})
    block = re.compile(_BLOCK.format(r"(\d+)"))
    depth = max((int(m[1]) + 1 for name in names if (m := block.fullmatch(name))), default=0)
    if not depth:
        raise UserError(f"layer_decay={decay} needs blocks; the model has {_some(list(names))}")
    blocks = [(_BLOCK.format(i), decay ** (depth - i)) for i in range(depth)]
    return [(_EMBEDDING, decay ** (depth + 1)), *blocks, (_OUTPUT, 1.0)]


def stop_frozen(params: Any, rules: Rules[bool]) -> Any:
    """The same parameters, but no gradient flows through those that `rules` freeze.

    The training step calls this on the parameters that it computes the loss with. The backward
    pass then leaves frozen parameters out, and clipping and SAM see zeros for them.

    Raises:
      UserError: as `per_parameter` does.
    """

    def stop(p: jax.Array, frozen: Any) -> jax.Array:
        if np.ndim(frozen):
            return jnp.where(frozen, jax.lax.stop_gradient(p), p)
        return jax.lax.stop_gradient(p) if frozen else p

    return jax.tree.map(stop, params, per_parameter(rules, params, "freeze_rules"))


def freeze_rules(config: ConfigDict) -> Rules[bool]:
    """The rules of a run's config, after those for what the model's family never trains."""
    rules = config.freeze_rules
    if config.lora.rank:
        trained = (r"(?:.*/)?lora_[ab]", *config.lora.train)
        rules = [*((pattern, False) for pattern in trained), (".*", True)]
    if not config.get("model"):
        return rules
    fields = config.model.to_dict()
    never = [(pattern, True) for pattern in registry.get(fields).frozen(fields)]
    return [*never, *rules]


def _named_leaves(params: Any) -> tuple[dict[str, Any], Any]:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves
    }, treedef


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown

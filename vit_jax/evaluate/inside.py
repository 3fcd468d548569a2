"""What a model computes on the way: the tokens of every block, and attention weights.

Looking changes nothing: the output is the plain forward pass's to the last bit.
"""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
from flax import linen as nn

from vit_jax.evaluate.similarity import is_block, require_unscanned, tokens_of

ByPath = collections.OrderedDict[str, jax.Array]


class Inside(NamedTuple):
    """A forward pass, by the paths of the modules in order of depth.

    Attributes:
      output: What the model returns.
      blocks: What each block gives, [N, T, D]; a map's H · W tokens row by row.
      weights: Of each attention [N, …, heads, Q, K]; the axes of … are windows. They are those
        that the softmax gives, so that each row adds up to 1: heads that talk or maps that are
        refined change them afterwards. Attention without a softmax over keys has none.
    """

    output: Any
    blocks: ByPath
    weights: ByPath


def look_inside(
    model: nn.Module, variables: Mapping[str, Any], *inputs: Any, **named: Any
) -> Inside:
    """Applies a model in evaluation mode, and returns what it computes on the way. Traceable.

    Args:
      model: Any model.
      variables: What the model is applied with; blocks one by one, not stacked.
      inputs, named: What the model takes, images [N, H, W, C] first.

    Raises:
      UserError: for a model that scans its blocks.
    """
    require_unscanned(model)
    blocks: ByPath = collections.OrderedDict()
    first = jax.tree.leaves((inputs, named))[0]

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and is_block(context.module):
            blocks["/".join(context.module.path)] = tokens_of(output, len(first))
        return output

    with nn.intercept_methods(record):
        applied: Any = model.apply(
            variables, *inputs, **named, train=False, mutable=["intermediates"]
        )
    output, state = applied
    found: Any = flax.traverse_util.flatten_dict(state.get("intermediates", {}), sep="/")
    end = "/attention_weights"
    weights = {path.removesuffix(end): x[0] for path, x in found.items() if path.endswith(end)}
    return Inside(output, blocks, collections.OrderedDict(weights))

"""One forward pass of either side, with what its blocks gave.

Outputs are [N, positions, C] or [N, C] whatever the framework; rows of a map come one by one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from flax import linen as nn


class Trace(NamedTuple):
    """`logits`, and the output of each block asked for, in that order; all NumPy."""

    logits: np.ndarray
    blocks: list[np.ndarray]

    @property
    def outputs(self) -> list[np.ndarray]:
        """Everything, the logits last."""
        return [*self.blocks, self.logits]


def trace_ours(
    model: "nn.Module",
    variables: Mapping[str, Any],
    images: np.ndarray,
    blocks: Sequence[str],
    dtype: Any,
) -> Trace:
    """Runs our model, compiled, with weights and images cast to `dtype`.

    Args:
      model: Called as `model.apply(variables, images, train=False)`.
      variables: The collections, nested: 'params', and 'batch_stats' where there are any.
      images: [N, H, W, 3].
      blocks: Paths of modules, such as 'Transformer/encoderblock_0'.
      dtype: float32 or float64.
    """
    import jax
    from flax import linen as nn

    wanted = {tuple(path.split("/")) for path in blocks}

    def forward(variables, images):
        found = {}

        def keep(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.path in wanted:
                found.setdefault("/".join(context.module.path), output)
            return output

        # What a run computes: to ask for intermediates would make attention show its weights,
        # which not every implementation can.
        with nn.intercept_methods(keep):
            logits = model.apply(variables, images, train=False)
        return logits, [found[path] for path in blocks]

    with jax.enable_x64(dtype == np.float64):
        variables = jax.tree.map(lambda x: np.asarray(x, dtype), dict(variables))
        logits, outputs = jax.device_get(jax.jit(forward)(variables, images.astype(dtype)))
    return Trace(logits, [_flat(x) for x in outputs])


def trace_torch(
    module: "torch.nn.Module",
    images: np.ndarray,
    blocks: Sequence[str],
    dtype: Any,
    logits_of: Callable[[Any], "torch.Tensor"] = lambda output: output,
) -> Trace:
    """Runs a PyTorch model, which becomes one of `dtype`.

    Args:
      module: Takes [N, 3, H, W].
      images: [N, H, W, 3].
      blocks: Dotted names of its modules.
      dtype: float32 or float64.
      logits_of: Finds the logits in what the model returns.
    """
    import torch

    outputs: dict[str, np.ndarray] = {}

    def keep(name: str):
        def hook(_module, _inputs, output) -> None:
            outputs[name] = _to_numpy(output)

        return hook

    handles = [module.get_submodule(name).register_forward_hook(keep(name)) for name in blocks]
    try:
        with torch.no_grad():
            pixels = torch.from_numpy(images.astype(dtype)).permute(0, 3, 1, 2).contiguous()
            logits = logits_of(module.to(pixels.dtype).eval()(pixels))
    finally:
        for handle in handles:
            handle.remove()
    return Trace(_to_numpy(logits), [outputs[name] for name in blocks])


def _to_numpy(output: Any) -> np.ndarray:
    x = output[0] if isinstance(output, tuple) else output
    # A convolution's map is the one thing with four axes, and has its channels second.
    return _flat((x.movedim(1, -1) if x.ndim == 4 else x).numpy())


def _flat(x: np.ndarray) -> np.ndarray:
    """[N, H, W, C] -> [N, H * W, C]; others stay."""
    return x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim == 4 else x

"""One forward pass of either side, with what its blocks gave.

Outputs are [N, positions, C] or [N, C] whatever the framework; rows of a map come one by one.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vit_jax.errors import UserError
from vit_jax.patches import cut

if TYPE_CHECKING:
    import torch
    from flax import linen as nn


Inputs = np.ndarray | Mapping[str, np.ndarray]


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
    inputs: Inputs,
    blocks: Sequence[str],
    dtype: Any,
) -> Trace:
    """Runs our model, compiled, with weights and images cast to `dtype`.

    Args:
      model: Called as `model.apply(variables, images, train=False)`.
      variables: The collections, nested: 'params', and 'batch_stats' where there are any.
      inputs: Images [N, H, W, 3], or what the model takes by name, in the order of its arguments.
      blocks: Paths of modules, such as 'Transformer/encoderblock_0'.
      dtype: float32 or float64.
    """
    import jax
    from flax import linen as nn

    wanted = {tuple(path.split("/")) for path in blocks}

    def forward(variables, *inputs):
        found = {}

        def keep(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.path in wanted:
                found.setdefault("/".join(context.module.path), output)
            return output

        # What a run computes: to ask for intermediates would make attention show its weights,
        # which not every implementation can.
        with nn.intercept_methods(keep):
            output = model.apply(variables, *inputs, train=False)
        return _logits_of(output), [found[path] for path in blocks]

    with jax.enable_x64(dtype == np.float64):
        variables = jax.tree.map(lambda x: np.asarray(x, dtype), dict(variables))
        batches = [_cast(x, dtype) for x in _by_name(inputs).values()]
        logits, outputs = jax.device_get(jax.jit(forward)(variables, *batches))
    return Trace(logits, [_flat(x) for x in outputs])


def _logits_of(output: Any) -> Any:
    """The logits of a model's output; of two towers the scores of each image with each text."""
    if not isinstance(output, tuple):
        return output
    if len(output) == 2:  # a text tower's
        return output[0]
    zimg, ztxt, out = output
    scores = out["t"].reshape(1, 1) * zimg @ ztxt.T
    return scores + out["b"].reshape(1, 1) if "b" in out else scores


def _by_name(inputs: Inputs) -> Mapping[str, np.ndarray]:
    return inputs if isinstance(inputs, Mapping) else {"images": inputs}


def _cast(x: np.ndarray, dtype: Any) -> np.ndarray:
    """Images in this type; tokens stay integers."""
    return x.astype(dtype) if x.dtype.kind == "f" else x


def trace_torch(
    module: "torch.nn.Module",
    inputs: Inputs,
    blocks: Sequence[str],
    dtype: Any,
    logits_of: Callable[[Any], "torch.Tensor"] = lambda output: output,
) -> Trace:
    """Runs a PyTorch model, which becomes one of `dtype`.

    Args:
      module: Takes [N, 3, H, W]; one of texts, or of both, is of transformers, and takes them by
        name.
      inputs: As for `trace_ours`.
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
            module = module.to(torch.from_numpy(np.zeros(0, dtype)).dtype).eval()
            logits = logits_of(call_torch(module, _by_name(inputs), dtype))
    finally:
        for handle in handles:
            handle.remove()
    return Trace(_to_numpy(logits), [outputs[name] for name in blocks])


def call_torch(module: Any, inputs: Mapping[str, np.ndarray], dtype: Any) -> Any:
    """What a PyTorch model gives for a batch by name; floating point numbers become `dtype`."""
    import torch

    tokens = torch.from_numpy(inputs["tokens"]) if "tokens" in inputs else None
    if "images" not in inputs:
        return module(input_ids=tokens, attention_mask=(tokens != 0).long())
    images = inputs["images"].astype(dtype)
    if "spatial_shapes" in inspect.signature(module.forward).parameters:
        patched = _patched(images, module.config)
        return module(**patched) if tokens is None else module(input_ids=tokens, **patched)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    if "kept" in inputs:
        return module(pixel_values=images, noise=_keeping(inputs["kept"], module.config))
    return module(images) if tokens is None else module(input_ids=tokens, pixel_values=images)


def _keeping(kept: np.ndarray, config: Any) -> Any:
    """Noise by which transformers' masked autoencoder keeps these patches, in this order.

    Raises:
      UserError: for images that are not square, and where it keeps another number of patches.
    """
    import torch

    size = _pair(config.image_size)
    if size[0] != size[1]:
        raise UserError(
            f"transformers' masked autoencoder takes square images, not of {size[0]}×{size[1]} "
            "pixels: its loss is of these"
        )
    sides = zip(size, _pair(config.patch_size), strict=True)
    count = math.prod(side // patch for side, patch in sides)
    wanted = int(count * (1 - config.mask_ratio))
    if kept.shape[1] != wanted:
        raise UserError(
            f"transformers keeps {wanted} of {count} patches, and {kept.shape[1]} are given; take "
            "larger images"
        )
    noise = np.ones((len(kept), count))
    np.put_along_axis(noise, kept, np.linspace(0, 0.5, wanted)[None], axis=1)
    return torch.from_numpy(noise)


def _pair(side: Any) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else tuple(side)


def _patched(images: np.ndarray, config: Any) -> dict[str, Any]:
    """Images as transformers' models of variable size take them."""
    import torch

    patches, grid = cut(images, getattr(config, "vision_config", config).patch_size)
    return {
        "pixel_values": torch.from_numpy(patches),
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int64),
        "spatial_shapes": torch.tensor([grid] * len(patches)),
    }


def _to_numpy(output: Any) -> np.ndarray:
    x = output[0] if isinstance(output, tuple) else output
    # A convolution's map is the one thing with four axes, and has its channels second.
    return _flat((x.movedim(1, -1) if x.ndim == 4 else x).numpy())


def _flat(x: np.ndarray) -> np.ndarray:
    """[N, H, W, C] -> [N, H * W, C]; others stay."""
    return x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim == 4 else x

"""Rotary positions of the libraries, computed in float64.

timm and transformers compute the angles in float32, whatever the type of the model, which alone
makes logits differ by 1e-8 to 1e-6. The same formulas stand here, by the fields of their modules.
"""

import math
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def match_timm(module: "torch.nn.Module") -> None:
    """Replaces the tables of every `RotaryEmbeddingDinoV3` and `RotaryEmbeddingCat` of timm's."""
    for part in module.modules():
        if type(part).__name__ in ("RotaryEmbeddingDinoV3", "RotaryEmbeddingCat"):
            setattr(part, "get_embed", types.MethodType(_timm_table, part))  # noqa: B010


def _timm_table(rope: Any, shape: Any = None, dtype: Any = None) -> "torch.Tensor":
    """Sines, then cosines, [H · W, 2 d]."""
    import torch

    is_dinov3 = hasattr(rope, "periods")
    shape = shape if shape is not None else rope.feat_shape
    references = None if is_dinov3 else rope.ref_feat_shape
    coordinates = []
    for axis, size in enumerate(shape):
        places = torch.arange(size, dtype=torch.float64) + rope.grid_offset
        if is_dinov3:
            longest = {"separate": size, "max": max(shape), "min": min(shape)}
            places = 2 * (places + 0.5) / longest[rope.normalize_coords] - 1
        elif references is not None:
            places = places / size * references[axis]
        coordinates.append(places)
    quarter = rope.dim // 4
    bands = rope.temperature ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    grid = torch.meshgrid(*coordinates, indexing="ij")
    grid = grid[::-1] if rope.grid_indexing == "xy" else grid
    angles = torch.stack(grid, -1).reshape(-1, 2, 1) * bands * (2 * math.pi if is_dinov3 else 1)
    angles = angles.flatten(1)
    angles = angles.tile(2) if rope.rotate_half else angles.repeat_interleave(2, -1)
    table = torch.cat([angles.sin(), angles.cos()], -1)
    return table.to(dtype or (rope.periods if is_dinov3 else rope.bands).dtype)


def match_hf(module: "torch.nn.Module") -> None:
    """Replaces the tables of transformers' DINOv3."""
    for part in module.modules():
        if type(part).__name__ == "DINOv3ViTRopePositionEmbedding":
            part.forward = types.MethodType(_hf_table, part)


def _hf_table(rope: Any, pixels: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Cosines and sines [H · W, d]."""
    import torch

    patch = rope.config.patch_size
    sides = patch if isinstance(patch, list | tuple) else (patch, patch)
    counts = [size // side for size, side in zip(pixels.shape[-2:], sides, strict=True)]
    places = [2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1 for n in counts]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij"), -1).reshape(-1, 2, 1)
    quarter = rope.head_dim // 4
    bands = rope.base ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = (2 * math.pi * grid * bands).flatten(1).tile(2)
    return angles.cos().to(pixels.dtype), angles.sin().to(pixels.dtype)

"""Checkpoints in and out: official `.npz`, safetensors, PyTorch. NumPy only; JAX is not imported.

params = load("ViT-B_16.npz")                    # nested dict, linen names
save("out.npz", params)                          # the released layout
state = to_torch({"params": params}, "ViT-B_16") # names and layouts of timm
save_timm("out.safetensors", params, "ViT-B_16") # … with what timm needs to build the model
"""

from vit_jax.checkpoint.convert import Conversion, convert
from vit_jax.checkpoint.identify import Identity, identify
from vit_jax.checkpoint.official import inspect_params, load, load_pretrained, save
from vit_jax.checkpoint.timm_file import save_timm
from vit_jax.checkpoint.torch_names import drop_pre_logits, from_torch, to_torch
from vit_jax.tree import recover_tree
from vit_jax.families.resize import interpolate_posembed, resize_posembed

__all__ = [
    "Conversion",
    "Identity",
    "convert",
    "drop_pre_logits",
    "from_torch",
    "identify",
    "inspect_params",
    "interpolate_posembed",
    "load",
    "load_pretrained",
    "recover_tree",
    "resize_posembed",
    "save",
    "save_timm",
    "to_torch",
]

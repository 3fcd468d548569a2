"""Checkpoints in and out: official `.npz`, safetensors, PyTorch, Orbax, Hugging Face.

params = load("ViT-B_16.npz")                    # nested dict, linen names
save("out.npz", params)                          # the released layout
state = to_torch({"params": params}, "ViT-B_16") # names and layouts of timm
save_timm("out.safetensors", params, "ViT-B_16") # … with what timm needs to build the model

JAX is imported only for what a family's shapes must be traced for: not for the original's models.
"""

from vit_jax.checkpoint.conversion import Conversion, convert
from vit_jax.checkpoint.facts import Facts
from vit_jax.checkpoint.io import (
    drop_pre_logits,
    from_torch,
    identify,
    inspect_params,
    load,
    load_pretrained,
    save,
    save_timm,
    to_torch,
)
from vit_jax.families.resize import interpolate_posembed, resize_posembed
from vit_jax.tree import recover_tree

__all__ = [
    "Conversion",
    "Facts",
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

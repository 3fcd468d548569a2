"""The tiniest model of each family that still has a block of each kind."""

from typing import Any

from vit_jax.families.registry import families, resolve, shrunk

# One block of each kind, and two stages: what a second one adds is compiled for seconds, which is
# nine tenths of the time that training takes, and shows nothing more.
_ONE_BLOCK = (
    *("beit", "beitv2", "cait", "cct", "clip_vision", "cpvt", "deit", "deit3", "deit_distilled"),
    *("dino", "dinov2", "dinov2_registers", "dinov3", "diversepatch", "eva", "lvvit"),
    *("naflex_vision", "simple_vit", "t2t", "tnt", "vit_avg", "vit_lite"),
)
_TWO_STAGES = {"hidden_sizes": (32, 64), "depths": (1, 1), "num_heads": (1, 2)}
_REDUCED = {**_TWO_STAGES, "mlp_ratios": (8, 4), "sr_ratios": (8, 1)}
_ENCODER = {"num_layers": 1, "num_heads": 2, "mlp_dim": 32, "dropout_rate": 0.1}
_FIELDS = {family: {"num_layers": 1} for family in _ONE_BLOCK}
_FIELDS |= {family: {"transformer": _ENCODER} for family in ("siglip_vision", "vit")}
_FIELDS |= dict.fromkeys(("levit", "levit_conv", "pit", "pit_distilled"), _TWO_STAGES)
_FIELDS |= {"pvt": _REDUCED, "pvt_v2": _REDUCED, "twins": {**_REDUCED, "depths": (2, 1)}}
_FIELDS |= {
    "botnet": {"hidden_sizes": (32, 64), "stages": (("conv",), ("conv", "attention"))},
    "botnet_paper": {"hidden_sizes": (32, 64), "stages": (("conv",), ("attention",))},
    "ceit": {"num_layers": 2},  # the last block's patches are not read
    "cvt": {**_TWO_STAGES, "mlp_ratios": (4, 4)},
    "mixer": {"num_blocks": 1},
    "swin": {"depths": (2, 1), "num_heads": (1, 2)},
    "vt": {"hidden_sizes": (64,), "depths": (1,)},
}


def shallow(family: str) -> dict[str, Any]:
    """The config of a model that takes images of 64 pixels."""
    name = next(iter(families()[family].architectures))
    return shrunk(resolve(name).config.to_dict()) | _FIELDS.get(family, {})

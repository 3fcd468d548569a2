"""The table of the battery: for every family the models that are compared, and with what.

A new family gets the whole battery by one row; what only it has is tested in a file of its own.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from zoo_botnet import SMALL_BOTNET, BoTNetCase
from zoo_cases import Case
from zoo_dinov2 import DINOv2Case

from vit_jax.families.registry import families, resolve
from vit_jax.parity.references import REFERENCES

# Alters a model of PyTorch, and says how many of its parts.
Change = Callable[[torch.nn.Module], int]


# --- changes of a reference that must be seen -----------------------------------------------------


def _replace(module: torch.nn.Module, word: str, new: Callable[[], torch.nn.Module]) -> int:
    """Replaces every part whose class has this word in its name."""
    found = [
        (parent, name)
        for parent in module.modules()
        for name, part in parent.named_children()
        if word in type(part).__name__
    ]
    for parent, name in found:
        setattr(parent, name, new())
    return len(found)


def tanh_gelu(module: torch.nn.Module) -> int:
    return _replace(module, "GELU", lambda: torch.nn.GELU(approximate="tanh"))


def erf_gelu(module: torch.nn.Module) -> int:
    return _replace(module, "GELU", torch.nn.GELU)


def swish(module: torch.nn.Module) -> int:
    return _replace(module, "Hardswish", torch.nn.SiLU)


def _eps(module: torch.nn.Module, kind: type, index: int) -> int:
    norms: Any = [x for x in module.modules() if isinstance(x, kind)]
    norms[index].eps *= 10
    return 1


def middle_eps(module: torch.nn.Module) -> int:
    count = sum(isinstance(x, torch.nn.LayerNorm) for x in module.modules())
    return _eps(module, torch.nn.LayerNorm, count // 2)


first_eps: Change = functools.partial(_eps, kind=torch.nn.LayerNorm, index=0)
last_eps: Change = functools.partial(_eps, kind=torch.nn.LayerNorm, index=-1)
batch_norm_eps: Change = functools.partial(_eps, kind=torch.nn.BatchNorm2d, index=0)
batch_norm_1d_eps: Change = functools.partial(_eps, kind=torch.nn.BatchNorm1d, index=0)


def head_order(module: torch.nn.Module) -> int:
    """Heads interleaved in what the last attention gives."""
    ends = ("attn.proj", "attention.output.dense", "attn.proj.linear", "to_out.0", "attn_out.proj")
    weights = [
        x for n, x in module.named_parameters() if n.endswith(tuple(e + ".weight" for e in ends))
    ]
    weights[-1].data = weights[-1].data.unflatten(1, (4, -1)).transpose(1, 2).flatten(1)
    return 1


def attention_scale(module: torch.nn.Module) -> int:
    parts: Any = [x for x in module.modules() if isinstance(getattr(x, "scale", None), float)]
    for part in parts:
        part.scale *= 1.001
        part.fused_attn = False
    return len(parts)


def no_mask(module: torch.nn.Module) -> int:
    parts: Any = [x for x in module.modules() if getattr(x, "attn_mask", None) is not None]
    for part in parts:
        part.attn_mask = None
    return len(parts)


def no_shift(module: torch.nn.Module) -> int:
    parts: Any = [x for x in module.modules() if any(getattr(x, "shift_size", ()))]
    for part in parts:
        part.shift_size = (0, 0)
    return len(parts)


def bias_scale(module: torch.nn.Module) -> int:
    tables = [x for n, x in module.named_parameters() if "relative_position_bias_table" in n]
    for table in tables:
        table.data *= 1.01
    return len(tables)


def coordinates_by_the_longer_side(module: Any) -> int:
    module.rope.normalize_coords = "max"
    return 1


def periods_of_eva(module: Any) -> int:
    module.rope.temperature = 10_000.0
    return 1


def reference_grid(module: Any) -> int:
    module.rope.ref_feat_shape = (8, 8)
    return 1


def gate_order(module: torch.nn.Module) -> int:
    """What is gated in the place of the gate, where one layer makes both."""
    layers: Any = [x.fc1 for x in module.modules() if "SwiGLUPacked" in type(x).__name__]
    layers += [x.fc1 for x in module.modules() if type(x).__name__ == "GluMlp"]
    for layer in layers:
        for x in layer.parameters():
            x.data = x.data.roll(len(x) // 2, 0)
    return len(layers)


def layer_scale(module: torch.nn.Module) -> int:
    scales = [x for n, x in module.named_parameters() if n.endswith((".ls1.gamma", ".ls2.gamma"))]
    for x in scales:
        x.data = torch.ones_like(x)
    return len(scales)


# --- the table ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One model of the battery.

    Attributes:
      name: Registered.
      size: (height, width) of its images; best not square, and no whole number of patches.
      fields: Constructor fields that make it small.
      wrong: Changes of the reference that must be seen.
      features: Whether it is compared without a head, too.
      gradients: Whether gradients are compared.
      maps: Arguments for timm's `forward_intermediates`, whose maps are ours; None for none.
      bfloat16: What the logits may lose in bfloat16, of their spread; None where that is not
        looked at.
      case: Puts the two sides together.
    """

    name: str
    size: tuple[int, int]
    fields: Mapping[str, Any]
    wrong: tuple[Change, ...] = ()
    features: bool = False
    gradients: bool = False
    maps: Mapping[str, Any] | None = None
    bfloat16: float | None = None
    case: type[Case] = Case

    @property
    def family(self) -> str:
        return resolve(self.name).family

    @property
    def has_reference(self) -> bool:
        """Whether a library builds it; a file of its own has other figures where none does."""
        return families()[self.family].reference in REFERENCES


@functools.cache
def case(key: str, *, features: bool = False) -> Case:
    """The two sides of a row, computed once."""
    row = ROWS[key]
    if features:
        return row.case(row.name, row.size, num_classes=0, **row.fields)
    return row.case(row.name, row.size, differentiated=row.gradients, **row.fields)


_BLOCKS = (tanh_gelu, first_eps, middle_eps, last_eps, head_order)
_TWO = {"num_layers": 2}
_GOOGLE = {"transformer": {"num_layers": 2}}
_SWIN = {"hidden_size": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 4)}
_FOUR = {"hidden_sizes": (8, 16, 20, 32), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 5, 4)}
_THREE = {"hidden_sizes": (8, 16, 24), "depths": (1, 2, 3), "num_heads": (1, 2, 3)}
_PIT = {"depths": (1, 1, 1), "hidden_sizes": (32, 64, 128), "num_heads": (2, 4, 8)}
_DINOV3 = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96}
_DEEPVIT = {"hidden_size": 24, "num_layers": 3, "num_heads": 3, "mlp_dim": 72}
_BEIT = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96}
_DINOV2 = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "mlp_dim": 48}
_WHOLE = {"features": True, "gradients": True, "bfloat16": 0.06}

ROWS = {
    # --- plain
    "vit": Row("ViT-Ti_16", (48, 80), _GOOGLE, (erf_gelu, *_BLOCKS[1:]), **_WHOLE),
    "mixer": Row("Mixer-B_32", (224, 224), {"num_blocks": 2}, (erf_gelu, last_eps), **_WHOLE),
    "vit_avg": Row("vit_tiny_patch16_avg_224", (48, 80), _TWO, _BLOCKS, **_WHOLE),
    "vit_avg_prenorm": Row("vit_tiny_patch16_avg_prenorm_224", (48, 80), _TWO, (last_eps,)),
    "i_jepa": Row(
        "vit_huge_patch14_gap_224", (42, 70), _DINOV2, (tanh_gelu, last_eps), features=True
    ),
    "deit": Row("deit_tiny_patch16_224", (48, 80), _TWO, _BLOCKS, features=True),
    "deit_distilled": Row("deit_tiny_distilled_patch16_224", (48, 80), _TWO, _BLOCKS, **_WHOLE),
    "dino": Row("dino_vits8", (24, 40), _TWO, (middle_eps,), features=True),
    "deit3": Row("deit3_small_patch16_224", (48, 80), _TWO, _BLOCKS, **_WHOLE),
    "clip": Row(
        "vit_base_patch16_clip_quickgelu_224",
        (48, 80),
        {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96},
        (*_BLOCKS, erf_gelu),
        **_WHOLE,
    ),
    "beit": Row("beit_base_patch16_224", (48, 80), _BEIT, (*_BLOCKS, bias_scale), **_WHOLE),
    "beitv2": Row("beitv2_base_patch16_224", (48, 48), _BEIT),
    "dinov3": Row(
        "vit_small_patch16_dinov3_qkvb",
        (48, 80),
        _DINOV3,
        (*_BLOCKS, coordinates_by_the_longer_side, periods_of_eva),
        case=DINOv2Case,
        **_WHOLE,
    ),
    "dinov3_gated": Row("vit_small_plus_patch16_dinov3", (80, 32), _DINOV3, case=DINOv2Case),
    "dinov2": Row(
        "vit_small_patch14_dinov2", (42, 70), _DINOV2, _BLOCKS, case=DINOv2Case, **_WHOLE
    ),
    "dinov2_gated": Row(
        "vit_giant_patch14_dinov2",
        (42, 70),
        {**_DINOV2, "mlp_dim": 88},
        (gate_order, layer_scale),
        case=DINOv2Case,
        gradients=True,
    ),
    "dinov2_registers": Row(
        "vit_small_patch14_reg4_dinov2",
        (42, 70),
        _DINOV2,
        (tanh_gelu, head_order, layer_scale),
        case=DINOv2Case,
        **_WHOLE,
    ),
    "eva": Row(
        "eva02_base_patch16_clip_224",
        (48, 80),
        _DINOV3,
        (first_eps, middle_eps, last_eps, head_order, reference_grid),
        **_WHOLE,
    ),
    "eva_gap": Row("eva02_tiny_patch14_224", (42, 70), _DINOV3, (gate_order, reference_grid)),
    "eva_first": Row("eva_giant_patch14_224", (42, 70), _DINOV3, _BLOCKS, features=True),
    "tipsv2": Row("vit_base_patch14_reg1_tipsv2", (42, 70), _DINOV2, case=DINOv2Case),
    "cait": Row("cait_xxs24_224", (48, 80), _TWO, _BLOCKS, **_WHOLE),
    "cait_square": Row("cait_xxs24_224", (64, 64), _TWO),
    "cait_late": Row("cait_s36_384", (48, 80), _TWO),
    "lvvit": Row("lvvit_s", (48, 80), _TWO, _BLOCKS, gradients=True, bfloat16=0.06),
    "lvvit_square": Row("lvvit_s", (64, 64), _TWO),
    "lvvit_large": Row("lvvit_l", (32, 32), _TWO),
    "lvvit_tiny": Row("lvvit_t", (32, 32), _TWO, features=True),
    "simple_vit": Row("simple_vit_s_16", (48, 80), _TWO, bfloat16=0.06),
    "deepvit": Row(
        "deepvit_patch16_224_re_attn_16b",
        (48, 80),
        _DEEPVIT | {"reattention_layers": 3},
        bfloat16=0.06,
    ),
    "deepvit_stem": Row("deepvit_S", (48, 80), _DEEPVIT | {"reattention_layers": 2}, bfloat16=0.06),
    "t2t": Row(
        "t2t_vit_7",
        (32, 48),
        {"hidden_size": 24, "num_layers": 1, "num_heads": 3, "mlp_dim": 24, "token_size": 16},
        bfloat16=0.06,
    ),
    "refiner": Row(
        "refiner_vit_s",
        (32, 48),
        {
            "hidden_size": 24,
            "num_layers": 2,
            "num_heads": 4,
            "mlp_dim": 24,
            "stem_features": (8, 8, 8),
        },
        bfloat16=0.06,
    ),
    "cpvt": Row(
        "cpvt_ti_patch16_224",
        (32, 48),
        {"hidden_size": 24, "num_layers": 2, "num_heads": 3, "mlp_dim": 24, "position_layers": 2},
        bfloat16=0.06,
    ),
    "cpvt_gap": Row("cpvt_ti_gap_patch16_224", (32, 48), _TWO),
    "diversepatch": Row(
        "diversepatch_deit_tiny_patch16_224",
        (32, 48),
        {"hidden_size": 24, "num_layers": 1, "num_heads": 3, "mlp_dim": 24},
        bfloat16=0.06,
    ),
    "siglip_vision": Row(
        "vit_base_patch16_siglip_224",
        (48, 80),
        {
            "hidden_size": 48,
            "transformer": {"num_layers": 2, "num_heads": 4, "mlp_dim": 100},
        },
        (erf_gelu, *_BLOCKS[1:]),
        features=True,
        gradients=True,
        bfloat16=0.06,
    ),
    "siglip_gap": Row(
        "vit_large_patch16_siglip_gap_512",
        (48, 80),
        {
            "hidden_size": 48,
            "transformer": {"num_layers": 1, "num_heads": 4, "mlp_dim": 100},
        },
        (erf_gelu,),
    ),
    # --- with convolutions before or between
    "ceit": Row(
        "ceit_tiny_patch16_224",
        (32, 48),
        {"hidden_size": 24, "num_layers": 2, "num_heads": 3, "mlp_dim": 24, "stem_features": 8},
        bfloat16=0.06,
    ),
    "cct": Row("cct_6_3x2_32", (32, 32), _TWO, (first_eps, last_eps), **_WHOLE),
    "cct_one_convolution": Row("cct_2_3x1_32", (16, 24), _TWO),
    "cct_large": Row("cct_14_7x2_224", (48, 80), _TWO),
    "vit_lite": Row("vit_2_4_32", (16, 24), _TWO, bfloat16=0.06),
    "vit_lite_pooled": Row("cvt_2_4_32", (16, 24), _TWO, bfloat16=0.06),
    "cct_border": Row("cct_14_7x2_224", (50, 90), _TWO),
    "vt": Row(
        "vt_resnet18",
        (48, 80),
        {
            "hidden_sizes": (64, 32, 64),
            "depths": (1, 1, 1),
            "num_tokens": 4,
            "token_size": 32,
            "num_heads": 2,
        },
        bfloat16=0.06,
    ),
    "levit": Row(
        "levit_128s",
        (48, 80),
        {"depths": (1, 1, 1)},
        (swish, batch_norm_1d_eps, attention_scale),
        gradients=True,
        maps={},
        bfloat16=0.06,
    ),
    "levit_conv": Row("levit_conv_192", (64, 64), {"depths": (1, 1, 1)}, features=True),
    "botnet": Row(
        "botnet26t_256",
        (64, 96),
        SMALL_BOTNET | {"activation": "relu"},
        (batch_norm_eps,),
        maps={},
        bfloat16=0.06,
        case=BoTNetCase,
    ),
    "botnet_silu": Row(
        "botnet26t_256",
        (64, 96),
        SMALL_BOTNET | {"activation": "silu"},
        gradients=True,
        case=BoTNetCase,
    ),
    "botnet_paper": Row(
        "botnet50",
        (64, 96),
        {
            "hidden_sizes": (32, 64, 64, 128),
            "stages": (("conv",), ("conv",), ("conv",), ("attention", "attention")),
        },
        bfloat16=0.06,
    ),
    # --- tokens of two sizes, and pooled; timm counts CrossViT's patches right only where both
    # branches have whole ones
    "tnt": Row("tnt_s_patch16_224", (32, 48), _TWO, _BLOCKS, **_WHOLE),
    "tnt_base": Row("tnt_b_patch16_224", (48, 48), _TWO),
    "crossvit": Row(
        "crossvit_tiny_240",
        (120, 120),
        {"depths": ((1, 2),)},
        _BLOCKS[:4],
        gradients=True,
        bfloat16=0.06,
    ),
    "crossvit_dagger": Row(
        "crossvit_9_dagger_240",
        (120, 240),
        {"depths": ((1, 2), (1, 1))},
        features=True,
        maps={"indices": [1, 3]},
    ),
    # Rows and columns that the last patches leave over, and maps that halve unevenly.
    "pit": Row("pit_b_224", (60, 72), _PIT),
    "pit_distilled": Row("pit_ti_distilled_224", (48, 80), _PIT, _BLOCKS, maps={}, **_WHOLE),
    # --- pyramids: one of each kind of block; sizes that are square, not square, no whole patches
    "swin": Row(
        "swin_tiny_patch4_window7_224",
        (64, 96),
        _SWIN,
        (*_BLOCKS, no_mask, no_shift, bias_scale),
        maps={},
        **_WHOLE,
    ),
    "swin_w12": Row("swin_base_patch4_window12_384", (60, 100), _SWIN),
    "pvt_v2": Row("pvt_v2_b0", (64, 96), _FOUR, _BLOCKS, gradients=True, maps={}, bfloat16=0.06),
    "pvt_v2_li": Row("pvt_v2_b2_li", (100, 76), _FOUR, maps={}),
    "twins": Row(
        "twins_svt_small",
        (64, 96),
        _FOUR,
        (*_BLOCKS, attention_scale),
        gradients=True,
        maps={},
        bfloat16=0.06,
    ),
    "twins_pcpvt": Row("twins_pcpvt_small", (100, 76), _FOUR),
    "pvt": Row("pvt_tiny", (64, 64), _FOUR, _BLOCKS, gradients=True, bfloat16=0.06),
    "pvt_medium": Row("pvt_medium", (32, 128), _FOUR | {"depths": (1, 1, 1, 1)}),
    "cvt": Row("cvt_13", (60, 72), _THREE, (*_BLOCKS, attention_scale, batch_norm_eps), **_WHOLE),
    "cvt_gelu": Row("cvt_21", (64, 64), _THREE | {"activation": "gelu"}),
}

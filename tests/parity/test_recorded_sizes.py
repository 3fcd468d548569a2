"""The recorded sizes against timm's models, counted by PyTorch's own counter."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit_jax.families import sizes
from vit_jax.families.registry import registered


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_base_patch16_384",
        "vit_small_r26_s32_384",
        "vit_base_r50_s16_224",
        "mixer_b16_224",
        "vit_giant_patch14_224",
    ],
)
def test_recorded_sizes_are_timms(name):
    size = registered()[name].preprocess.size
    with torch.device("meta"):  # shapes only
        model = timm.create_model(name, num_classes=1000).eval()
        image = torch.empty(1, 3, size, size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(image)
    params = sum(p.numel() for p in model.parameters())
    # PyTorch counts a multiply-add twice.
    recorded = sizes.recorded()[name]
    assert (recorded.params, recorded.macs) == (params, counter.get_total_flops() // 2)

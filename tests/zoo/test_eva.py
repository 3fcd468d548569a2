"""What only EVA and EVA-02 have, beside the battery's tests: controls, names, counts."""

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from strong_weights import StrongCase

from vit_jax.checkpoint import to_torch
from vit_jax.families.registry import resolve
from vit_jax.families.sizes import recorded
from vit_jax.models.eva import EVA
from vit_jax.parity import references
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours, trace_torch

TINY = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96}
PACKED, SPLIT, TOWER, FIRST = (
    "eva02_tiny_patch14_224",
    "eva02_base_patch14_224",
    "eva02_base_patch16_clip_224",
    "eva_giant_patch14_224",
)


@functools.cache
def case(name: str = TOWER) -> StrongCase:
    side = resolve(name).config.patch_size
    return StrongCase(name, (3 * side, 6 * side), **TINY)


@functools.cache
def tokens() -> np.ndarray:
    """All tokens of the tower after the last norm."""
    this, last = case(), ["Transformer/encoder_norm"]
    return trace_ours(this.model, this.variables, this.images, last, np.float64).blocks[0]


@pytest.mark.parametrize("name", [SPLIT, TOWER])
def test_every_block_gives_timms_tokens(name):
    this, library = case(name), references.get("timm")
    module = this.reference()
    points = library.points(this.config, module)
    assert len(points) == 4
    ours, theirs = ([getattr(p, side) for p in points] for side in ("ours", "theirs"))
    for dtype, bar in ((np.float64, FLOAT64_BAR), (np.float32, 2e-5)):
        x = trace_ours(this.model, this.variables, this.images, ours, dtype)
        y = trace_torch(module, this.images, theirs, dtype)
        for one, other in zip(x.outputs, y.outputs, strict=True):
            assert relative_error(one, other) <= bar


def test_as_shipped_only_timms_float32_angles_differ():
    shipped = case().reference(matched=False).double()
    assert FLOAT64_BAR < case().error(shipped) < 2e-6


def _in_halves(module: Any) -> None:
    module.rope.rotate_half = True
    for block in module.blocks:
        block.attn.rotate_half = True


def _unturned(module: Any) -> None:
    module.rope = None


def _with_rope(**fields: Any):
    return lambda module: vars(module.rope).update(fields)


def _dinov3(module: Any) -> None:
    """DINOv3's coordinates and frequencies, in pairs."""
    centred = [2 * (torch.arange(n).double() + 0.5) / n - 1 for n in (3, 6)]
    grid = torch.stack(torch.meshgrid(*centred, indexing="ij"), -1).reshape(-1, 2, 1)
    bands = 2 * torch.pi * 100.0 ** -(torch.arange(3).double() / 3)
    angles = (grid * bands).flatten(1).repeat_interleave(2, -1)
    module.rope.get_embed = lambda: torch.cat([angles.sin(), angles.cos()], -1)


def _without_attention_norm(module: Any) -> None:
    for block in module.blocks:
        block.attn.norm = torch.nn.Identity()


def _gate_swapped(module: Any) -> None:
    for block in module.blocks:
        block.mlp.fc1_g, block.mlp.fc1_x = block.mlp.fc1_x, block.mlp.fc1_g


@pytest.mark.parametrize(
    ("change", "least"),
    [
        pytest.param(_in_halves, 0.5, id="channels turned in halves"),
        pytest.param(_unturned, 0.4, id="no angles"),
        pytest.param(_with_rope(grid_indexing="xy"), 0.4, id="columns before rows"),
        pytest.param(_dinov3, 0.4, id="DINOv3's angles"),
        pytest.param(_with_rope(ref_feat_shape=(8, 8)), 0.4, id="a grid of 8"),
        pytest.param(_with_rope(grid_offset=0.5), 0.01, id="an offset of a half"),
        pytest.param(_without_attention_norm, 1.0, id="no norm in the attention"),
        pytest.param(_gate_swapped, 0.8, id="gate and gated swapped"),
    ],
)
def test_another_formula_is_seen(change, least):
    module = copy.deepcopy(case().module)
    change(module)
    traced = trace_torch(module, case().images, ["norm"], np.float64)
    assert relative_error(tokens(), traced.blocks[0]) >= least


def test_other_grids_are_stretched_to_that_of_the_pretraining():
    """A map of 32 × 32 has half steps."""
    model = EVA(0, 14, 48, 1, 4, 96)
    large, small = (model.apply({}, *size, method="_rotary") for size in ((32, 8), (16, 16)))
    cells = [large.sin.reshape(32, 8, 12), small.sin.reshape(16, 16, 12)]
    np.testing.assert_allclose(cells[0][::2], cells[1][:, ::2], atol=1e-6)


@pytest.mark.parametrize("name", [PACKED, SPLIT, TOWER, FIRST])
def test_official_names_both_ways(name):
    side = resolve(name).config.patch_size
    StrongCase(name, (side, side), layout="torch", **TINY).assert_round_trip()


def test_models_with_and_without_norms_are_split_otherwise():
    def names(name: str, layout: str) -> set[str]:
        state = to_torch(case(name).variables, case(name).config, layout)
        block = "blocks.1."
        return {n.removeprefix(block) for n in state if n.startswith(block)}

    norms = {f"norm{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")}
    common = norms | {"attn.proj.weight", "attn.proj.bias"}

    def layers(*layers: str) -> set[str]:
        return {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}

    packed = common | {"attn.qkv.weight", "attn.q_bias", "attn.v_bias"}
    assert names(PACKED, "timm") == packed | layers("mlp.fc1", "mlp.fc2")
    assert names(PACKED, "torch") == packed | layers("mlp.w12", "mlp.w3")
    kernels = {f"attn.{x}_proj.weight" for x in "qkv"}
    split = common | kernels | {"attn.q_proj.bias", "attn.v_proj.bias"}
    split |= layers("mlp.fc1_g", "mlp.fc1_x", "mlp.norm", "mlp.fc2")
    assert names(SPLIT, "timm") == split
    assert names(TOWER, "timm") == split | layers("attn.norm")
    split = common | kernels | {"attn.q_bias", "attn.v_bias"}
    split |= layers("mlp.w1", "mlp.w2", "mlp.ffn_ln", "mlp.w3")
    assert names(SPLIT, "torch") == split
    assert names(TOWER, "torch") == split | layers("attn.inner_attn_ln")


def test_there_are_as_many_parameters_as_in_timm():
    counts = {
        "eva02_tiny_patch14_224": 5_502_144,
        "eva02_tiny_patch14_336": 5_756_584,
        "eva02_small_patch14_224": 21_621_120,
        "eva02_small_patch14_336": 22_129_000,
        "eva02_base_patch14_224": 85_758_720,
        "eva02_base_patch14_448": 87_117_544,
        "eva02_large_patch14_224": 303_268_800,
        "eva02_large_patch14_448": 305_080_232,
        "eva02_base_patch16_clip_224": 86_263_040,
        "eva02_large_patch14_clip_224": 304_105_152,
        "eva02_large_patch14_clip_336": 304_432_832,
        "eva_giant_patch14_224": 1_012_555_112,
    }
    assert {name: recorded()[name].params for name in counts} == counts

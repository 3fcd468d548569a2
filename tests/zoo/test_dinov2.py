"""What only DINOv2 has, beside the battery: transformers, heads, positions, what timm folds."""

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from zoo_cases import Case
from zoo_dinov2 import POSITIONS

from vit_jax.checkpoint import from_torch, names, to_torch
from vit_jax.errors import UserError
from vit_jax.families import sizes
from vit_jax.families.registry import families, resolve
from vit_jax.families.resize import resize_posembed
from vit_jax.parity import references
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.tree import arrays, unflatten
from vit_jax.variables import named

PLAIN, REGISTERS = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
GATED = "vit_giant_patch14_dinov2"
SMALL = {"hidden_size": 32, "num_layers": 5, "num_heads": 4, "mlp_dim": 128}
SMALL_OF = {PLAIN: SMALL, REGISTERS: SMALL, GATED: {**SMALL, "mlp_dim": 88}}


@functools.cache
def case(name: str, num_classes: int = 0, layout: str = "hf", **fields: Any) -> Case:
    fields = {**SMALL_OF[name], **fields}
    return Case(name, (56, 56), layout=layout, num_classes=num_classes, **fields)


def without_head(this: Case) -> torch.nn.Module:
    """transformers' model of the same weights, in float64."""
    features = {name: x for name, x in this.flat.items() if not name.startswith("head")}
    state = to_torch({"params": unflatten(features)}, this.config, "hf")
    how = {"num_classes": 0, "image_size": this.size, "matched": True}
    return references.get("hf").build(this.config, state, **how).double()


@pytest.mark.parametrize("name", SMALL_OF)
def test_transformers_gives_the_class_token(name):
    this = case(name)
    assert this.error() <= FLOAT64_BAR
    this.assert_round_trip()


@pytest.mark.parametrize("name", [PLAIN, REGISTERS])
def test_transformers_head_reads_the_class_token_and_the_mean(name):
    this = case(name, 7, head_reads="token_mean")
    assert this.error() <= FLOAT64_BAR
    this.assert_round_trip()
    halves = np.roll(this.flat["head/kernel"], 32, axis=0)
    assert relative_error(this.ours_from(**{"head/kernel": halves}), this.theirs()) > 0.1


def test_a_head_reads_the_class_tokens_of_four_blocks():
    this = case(PLAIN, 7, layout="torch", head_reads="four_tokens_mean")
    module: Any = without_head(this)
    with torch.no_grad():
        pixels = torch.from_numpy(this.images).permute(0, 3, 1, 2)
        states = module(pixels, output_hidden_states=True).hidden_states
        last = [module.layernorm(x).numpy() for x in states[-4:]]
    read = np.concatenate([*(x[:, 0] for x in last), last[-1][:, 1:].mean(1)], axis=-1)
    expected = read @ this.flat["head/kernel"] + this.flat["head/bias"]
    assert relative_error(this.ours64, expected) <= FLOAT64_BAR
    this.assert_round_trip()
    with pytest.raises(UserError, match="transformers has no head that reads 'four_tokens_mean'"):
        to_torch(this.variables, this.config, "hf")


def test_the_official_files_have_these_names():
    """Keys of the official code's state dict, for a model of one block (its constructor's)."""
    block = "norm1.weight norm1.bias attn.qkv.weight attn.qkv.bias attn.proj.weight attn.proj.bias "
    block += "ls1.gamma norm2.weight norm2.bias ls2.gamma "
    plain, gated = ("mlp.fc1", "mlp.fc2"), ("mlp.w12", "mlp.w3")
    for name, mlp, more in ((REGISTERS, plain, {"register_tokens"}), (GATED, gated, set())):
        wanted = {f"blocks.0.{part}" for part in block.split()} | more
        wanted |= {f"blocks.0.{part}.{leaf}" for part in mlp for leaf in ("weight", "bias")}
        wanted |= {"cls_token", "pos_embed", "mask_token", "norm.weight", "norm.bias"}
        wanted |= {"patch_embed.proj.weight", "patch_embed.proj.bias"}
        this = case(name, layout="torch", num_layers=1)
        assert set(this.state) == wanted
        assert this.state["mask_token"].shape == (1, 32)
        this.assert_round_trip()


def official_positions(table: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """The resizing of the hub's models without registers: a scale of (n + 0.1) / N an axis."""
    side = math.isqrt(table.shape[1])
    maps = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scales = tuple((n + 0.1) / side for n in grid)
    maps = torch.nn.functional.interpolate(maps, scale_factor=scales, mode="bicubic")
    assert tuple(maps.shape[2:]) == grid
    return maps.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1).numpy()


@pytest.mark.parametrize("grid", [(16, 16), (64, 64), (37, 50), (20, 44)])
def test_positions_are_resized_as_each_library_does(grid):
    from timm.layers.pos_embed import resample_abs_pos_embed

    table = np.random.default_rng(0).standard_normal((1, 37 * 37, 8))
    torch_table = torch.from_numpy(table)

    def ours(method: str) -> np.ndarray:
        return resize_posembed(table, (37, 37), grid, 0, method)

    def interpolated(**how: Any) -> np.ndarray:
        maps = torch_table.reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
        maps = torch.nn.functional.interpolate(maps, size=grid, mode="bicubic", **how)
        return maps.permute(0, 2, 3, 1).reshape(1, -1, 8).numpy()

    expected = {
        "dino": official_positions(torch_table, grid),
        "bicubic": interpolated(),
        "timm": interpolated(antialias=True),
    }
    # timm itself resizes in float32, and so does what it takes the coordinates from.
    timms = resample_abs_pos_embed(torch_table, list(grid), num_prefix_tokens=0)
    np.testing.assert_allclose(timms, expected["timm"], atol=2e-5)
    for method, positions in expected.items():
        np.testing.assert_allclose(ours(method), positions, atol=1e-6)
        for other in expected.keys() - {method}:
            assert abs(ours(other) - positions).max() > 0.1


@pytest.mark.parametrize(("name", "method"), [(PLAIN, "bicubic"), (REGISTERS, "timm")])
def test_transformers_resizes_oblong_images_by_a_method_of_ours(name, method):
    """In float32, which is the bar; the other methods give other features."""
    this, size = case(name), (42, 84)
    images = np.random.default_rng(2).uniform(-1, 1, (2, *size, 3))
    with torch.no_grad():
        output = this.module(torch.from_numpy(images).permute(0, 3, 1, 2))
    theirs = output.last_hidden_state[:, 0].numpy()
    errors = {}
    for way in ("dino", "bicubic", "timm"):
        edit = names.resizes(this.config, this.size, size, way)[POSITIONS]
        oblong = Case(name, size, num_classes=0, **SMALL_OF[name])
        oblong.images = images
        ours = oblong.ours_from(**{**this.flat, POSITIONS: edit(this.flat[POSITIONS])})
        errors[way] = relative_error(ours, theirs)
    assert errors.pop(method) <= 2e-5
    assert min(errors.values()) > 1e-3


def test_the_default_is_the_official_code_of_that_kind():
    found = {name: families()[resolve(name).family].resize_method for name in SMALL_OF}
    assert found == {PLAIN: "dino", GATED: "dino", REGISTERS: "timm"}


def test_timm_folds_the_position_of_the_class_token():
    """The sum is kept, its parts are not; equal in function, and folded again bit for bit."""
    this = case(REGISTERS)
    folded = to_torch(this.variables, this.config, "timm")
    position = this.flat[POSITIONS][:, :1]
    np.testing.assert_array_equal(folded["cls_token"], this.flat["cls"] + position)
    assert folded["pos_embed"].shape == (1, 16, 32)
    back = from_torch(folded, this.config, "timm")
    flat = arrays(named(back))
    assert not flat[POSITIONS][:, 0].any()
    assert not flat["mask_token"].any()
    # The one addition in float32 is all that differs.
    assert relative_error(this.ours_from(**flat), this.theirs()) <= 1e-6
    again = to_torch(back, this.config, "timm")
    for name, x in folded.items():
        np.testing.assert_array_equal(again[name], x)
    unfolded = {**flat, "cls": this.flat["cls"]}
    assert relative_error(this.ours_from(**unfolded), this.theirs()) > 0.1


def test_only_pretraining_reads_the_mask_token():
    this = case(PLAIN)
    other = this.ours_from(mask_token=this.flat["mask_token"] + 1)
    np.testing.assert_array_equal(other, this.ours64)


@pytest.mark.parametrize(
    ("name", "theirs", "timms"),
    [
        ("small_patch14", 22_056_576, 22_056_192),
        ("base_patch14", 86_580_480, 86_579_712),
        ("large_patch14", 304_368_640, 304_367_616),
        ("giant_patch14", 1_136_480_768, 1_136_479_232),
        ("small_patch14_reg4", 22_058_112, 22_057_344),
        ("base_patch14_reg4", 86_583_552, 86_582_016),
        ("large_patch14_reg4", 304_372_736, 304_370_688),
        ("giant_patch14_reg4", 1_136_486_912, 1_136_483_840),
    ],
)
def test_parameters_are_transformers_which_are_timms_and_what_it_lacks(name, theirs, timms):
    name = f"vit_{name}_dinov2"
    assert sizes.recorded()[name].params == theirs
    width = resolve(name).config["hidden_size"]
    assert theirs - timms == width * (2 if "reg4" in name else 1)

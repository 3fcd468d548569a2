"""What only DINOv3 has, beside the battery's tests: controls, names, training, files."""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from strong_weights import StrongCase
from zoo_cases import config_of

from vit_jax.checkpoint import from_torch, to_torch
from vit_jax.errors import UserError
from vit_jax.families.registry import resolve
from vit_jax.families.sizes import recorded
from vit_jax.layers.masking import MASKED, UNSELECTED, Corruption
from vit_jax.models import from_config
from vit_jax.parity import references
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours, trace_torch
from vit_jax.tree import arrays, unflatten

PLAIN, BIASED, GATED = (
    "vit_small_patch16_dinov3",
    "vit_small_patch16_dinov3_qkvb",
    "vit_small_plus_patch16_dinov3_qkvb",
)
TINY = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96}


@functools.cache
def case(name: str = BIASED, layout: str = "timm") -> StrongCase:
    classes = 7 if layout == "timm" else 0
    return StrongCase(name, (48, 96), layout=layout, num_classes=classes, **TINY)


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout"), [(BIASED, "timm"), (GATED, "timm"), (BIASED, "hf"), (GATED, "hf")]
)
def test_every_block_gives_the_references_tokens(name, layout):
    this, library = case(name, layout), references.get(layout)
    module = this.reference()
    points = library.points(this.config, module)
    assert len(points) == 4
    ours, theirs = ([getattr(p, side) for p in points] for side in ("ours", "theirs"))
    for dtype, bar in ((np.float64, FLOAT64_BAR), (np.float32, 2e-5)):
        x = trace_ours(this.model, this.variables, this.images, ours, dtype)
        y = trace_torch(module, this.images, theirs, dtype, library.logits_of)
        for one, other in zip(x.outputs, y.outputs, strict=True):
            assert relative_error(one, other) <= bar


def test_as_shipped_only_their_float32_angles_differ():
    this = case()
    shipped = this.reference(matched=False).double()
    assert FLOAT64_BAR < this.error(shipped) < 1e-6


@functools.cache
def tokens() -> np.ndarray:
    """All tokens after the last norm: patches see more of what is wrong than the class token."""
    this, last = case(), ["Transformer/encoder_norm"]
    return trace_ours(this.model, this.variables, this.images, last, np.float64).blocks[0]


def _interleaved(module: Any) -> None:
    module.rope.rotate_half = False
    for block in module.blocks:
        block.attn.rotate_half = False


def _with_rope(**fields: Any):
    return lambda module: vars(module.rope).update(fields)


def _eva(module: Any) -> None:
    """The coordinates of EVA-02 with DINOv3's frequencies: counted, and not normalised."""

    def table(shape):
        places = torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij")
        bands = module.rope.temperature ** -(torch.arange(3).double() / 3)
        angles = (torch.stack(places, -1).reshape(-1, 2, 1) * bands).flatten(1).tile(2)
        return torch.cat([angles.sin(), angles.cos()], -1)

    module.rope.get_embed = table


def _bfloat16_periods(module: Any) -> None:
    rounded = (100.0 ** (torch.arange(3).double() / 3)).bfloat16().double()

    def table(shape):
        centred = [2 * (torch.arange(n).double() + 0.5) / n - 1 for n in shape]
        grid = torch.stack(torch.meshgrid(*centred, indexing="ij"), -1).reshape(-1, 2, 1)
        angles = (2 * torch.pi * grid / rounded).flatten(1).tile(2)
        return torch.cat([angles.sin(), angles.cos()], -1)

    module.rope.get_embed = table


def _key_bias(module: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for block in module.blocks:
        bias = block.attn.k_bias
        bias.copy_(0.2 * torch.randn(bias.shape, generator=generator, dtype=bias.dtype))


def _tanh(module: Any) -> None:
    for block in module.blocks:
        block.mlp.act = torch.nn.GELU(approximate="tanh")


@pytest.mark.parametrize(
    ("change", "least"),
    [
        pytest.param(_interleaved, 1.0, id="channels turned in pairs"),
        pytest.param(_with_rope(grid_indexing="xy"), 0.8, id="columns before rows"),
        pytest.param(_with_rope(normalize_coords="max"), 0.5, id="both axes by the longer side"),
        pytest.param(_eva, 0.5, id="EVA's coordinates"),
        pytest.param(_with_rope(temperature=10_000.0), 0.3, id="base 10000"),
        pytest.param(_bfloat16_periods, 1e-3, id="periods in bfloat16"),
        pytest.param(_key_bias, 0.1, id="a bias of the keys"),
        pytest.param(_tanh, 4e-4, id="tanh form of GELU"),
    ],
)
def test_another_formula_is_seen(change, least):
    this = case()
    module = copy.deepcopy(this.module)
    change(module)
    traced = trace_torch(module, this.images, ["norm"], np.float64)
    assert relative_error(tokens(), traced.blocks[0]) >= least


def test_gate_and_what_it_gates_are_not_one_another():
    this = case(GATED)
    swapped = {
        name: this.flat[other]
        for name in this.flat
        for one, two in (("/gate/", "/Dense_0/"), ("/Dense_0/", "/gate/"))
        if one in name and (other := name.replace(one, two))
    }
    assert relative_error(this.ours_from(**swapped), this.theirs()) > 0.5


def test_masked_patches_become_the_token():
    this = case(layout="hf")
    masked = np.zeros((2, 18), bool)
    masked[0, [1, 5, 7]] = masked[1, [0, 17]] = True
    kind = np.where(masked, MASKED, UNSELECTED)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: np.asarray(x, np.float64), this.variables)
        corruption = Corruption(kind, np.zeros_like(kind))
        apply = jax.jit(functools.partial(this.model.apply, train=False))
        ours = np.asarray(apply(variables, this.images, corruption=corruption))
    pixels = torch.from_numpy(this.images).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = this.module(pixels, bool_masked_pos=torch.from_numpy(masked)).pooler_output
    assert relative_error(ours, theirs.numpy()) <= FLOAT64_BAR
    assert relative_error(ours, this.theirs()) > 1e-2


# --- in training ----------------------------------------------------------------------------------


def test_training_rescales_the_coordinates_by_one_factor_a_step():
    """And evaluation does not; the factor's logarithm is uniform between those of 1/2 and 2."""
    model = from_config(config_of(BIASED, rescale=2.0, **TINY), num_classes=0)

    @jax.jit
    def first_angle(key):
        def table(module):
            return module._rotary(1, 4, train=True)

        rotary = model.apply({}, method=table, rngs={"dropout": key})
        return jnp.atan2(rotary.sin[2, 3], rotary.cos[2, 3])  # that of x = 1/4

    keys = jax.random.split(jax.random.key(0), 400)
    factors = np.asarray(jax.lax.map(first_angle, keys)) / (2 * np.pi / 4)
    powers = np.log2(factors)
    assert powers.min() < -0.95
    assert powers.max() > 0.95
    assert abs(powers).max() <= 1 + 1e-5
    assert abs(powers.mean()) < 0.1
    assert abs(powers.std() - 3**-0.5) < 0.04
    this = case()
    np.testing.assert_array_equal(this.ours_with(rescale=2.0), this.ours64)
    plain = jax.jit(functools.partial(this.model.apply, train=True))(this.variables, this.images)
    assert relative_error(np.asarray(plain), this.ours64) < 2e-5
    train = functools.partial(this.model.clone(rescale=2.0).apply, train=True)
    apply = jax.jit(lambda v, x, key: train(v, x, rngs={"dropout": key}))
    outputs = [np.asarray(apply(this.variables, this.images, keys[i])) for i in (0, 1, 0)]
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert relative_error(outputs[0], outputs[1]) > 1e-3


# --- names ----------------------------------------------------------------------------------------


def test_official_names_are_those_of_its_own_code():
    this = case(GATED)
    state = to_torch(this.variables, this.config, "official")
    block = {"norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.qkv.bias_mask"}
    block |= {"attn.proj.weight", "attn.proj.bias", "ls1.gamma", "norm2.weight", "norm2.bias"}
    block |= {f"mlp.w{i}.{leaf}" for i in (1, 2, 3) for leaf in ("weight", "bias")} | {"ls2.gamma"}
    whole = {"cls_token", "storage_tokens", "mask_token", "rope_embed.periods", "norm.weight"}
    whole |= {"norm.bias", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    whole |= {"head.weight", "head.bias"} | {f"blocks.{i}.{n}" for i in (0, 1) for n in block}
    assert state.keys() == whole
    assert state["mask_token"].shape == (1, 48)
    assert state["storage_tokens"].shape == (1, 4, 48)
    np.testing.assert_allclose(state["rope_embed.periods"], [1, 100 ** (1 / 3), 100 ** (2 / 3)])
    query, key, value = state["blocks.1.attn.qkv.bias"].reshape(3, 48)
    ours = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/{}/bias"
    np.testing.assert_array_equal(query, this.flat[ours.format("query")].ravel())
    np.testing.assert_array_equal(value, this.flat[ours.format("value")].ravel())
    assert not key.any()
    np.testing.assert_array_equal(
        state["blocks.0.attn.qkv.bias_mask"].reshape(3, 48), [[1] * 48, [0] * 48, [1] * 48]
    )


@pytest.mark.parametrize("name", [PLAIN, BIASED, GATED])
@pytest.mark.parametrize("layout", ["torch", "hf"])
def test_names_both_ways(name, layout):
    StrongCase(name, (16, 16), layout=layout, num_classes=0, **TINY).assert_round_trip()


def test_official_biases_are_masked_and_keys_have_none():
    this = case()
    state = to_torch(this.variables, this.config, "official")
    bias = "blocks.0.attn.qkv.bias"
    state[bias] = state[bias].copy()
    state[bias][48:96] = 3.0  # what the forward pass multiplies by 0
    read = arrays(from_torch(state, this.config, "official")["params"])
    for name, x in this.flat.items():
        np.testing.assert_array_equal(read[name], x, err_msg=name)
    del state[f"{bias}_mask"]
    with pytest.raises(UserError, match=r"part 2 of 3.*48 of its 48 numbers"):
        from_torch(state, this.config, "official")


@pytest.mark.parametrize("layout", ["timm", "torch", "hf"])
def test_biases_are_left_out_only_where_they_are_zero(layout):
    """And else the name that has them is said."""
    this = StrongCase(BIASED, (16, 16), num_classes=0, **TINY)
    plain = config_of(PLAIN, **TINY)
    state = to_torch(this.variables, this.config, layout)
    with pytest.raises(UserError, match=f"are not zero.*read it as a {BIASED}"):
        from_torch(state, plain, layout)
    names = [n for n in this.flat if n.endswith(("query/bias", "value/bias"))]
    zeroed = {**this.flat, **{n: np.zeros_like(this.flat[n]) for n in names}}
    state = to_torch({"params": unflatten(zeroed)}, this.config, layout)
    read = arrays(from_torch(state, plain, layout)["params"])
    assert read.keys() == zeroed.keys() - set(names)
    model = from_config(plain, num_classes=0)
    with_zeros = this.ours_from(**{n: zeroed[n] for n in names})
    without = trace_ours(model, {"params": unflatten(read)}, this.images, [], np.float64).logits
    assert relative_error(without, with_zeros) < 1e-12


# --- sizes ----------------------------------------------------------------------------------------

# Of timm without and with biases, and of transformers.
COUNTS = {
    "small": (21_586_944, 21_596_160, 21_596_544),
    "small_plus": (28_683_264, 28_692_480, 28_692_864),
    "base": (85_641_216, 85_659_648, 85_660_416),
    "large": (303_079_424, 303_128_576, 303_129_600),
    "huge_plus": (840_509_440, 840_591_360, 840_592_640),
    "7b": (6_716_030_976, None, 6_716_035_072),
}


@pytest.mark.parametrize("size", COUNTS)
def test_there_are_as_many_parameters_as_elsewhere(size):
    """timm's models lack the mask token, which is as wide as any token."""
    name = f"vit_{size}_patch16_dinov3"
    without, biased, hugging_face = COUNTS[size]
    width = resolve(name).config.hidden_size
    assert recorded()[name].params - width == without
    if biased is None:
        assert recorded()[name].params == hugging_face
        return
    assert recorded()[f"{name}_qkvb"].params - width == biased
    assert recorded()[f"{name}_qkvb"].params == hugging_face


def test_relatives_have_their_counts():
    for name, count, width in (
        ("vit_tiny_patch16_dinov3_qkvb", 5_489_664, 192),
        ("vit_giant_patch16_lingbot", 1_134_473_216, 1536),
    ):
        assert recorded()[name].params - width == count

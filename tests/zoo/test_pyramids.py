"""The families whose stages are a pyramid of maps, against timm and Hugging Face."""

import copy
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from zoo_cases import Case

from vit_jax.errors import UserError
from vit_jax.layers.drop import DropPath
from vit_jax.models import feature_maps, from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error

_SWIN = {"hidden_size": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 4)}
_FOUR = {"hidden_sizes": (8, 16, 20, 32), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 5, 4)}
_THREE = {"hidden_sizes": (8, 16, 24), "depths": (1, 2, 3), "num_heads": (1, 2, 3)}

# One of each kind of block; image sizes that are square, not square, and no whole patches.
CASES = {
    "swin": ("swin_tiny_patch4_window7_224", (64, 96), _SWIN),
    "swin_w12": ("swin_base_patch4_window12_384", (60, 100), _SWIN),
    "pvt_v2": ("pvt_v2_b0", (64, 96), _FOUR),
    "pvt_v2_li": ("pvt_v2_b2_li", (100, 76), _FOUR),
    "twins_svt": ("twins_svt_small", (64, 96), _FOUR),
    "twins_pcpvt": ("twins_pcpvt_small", (100, 76), _FOUR),
    "pvt": ("pvt_tiny", (64, 64), _FOUR),
    "pvt_medium": ("pvt_medium", (32, 128), _FOUR | {"depths": (1, 1, 1, 1)}),
    "cvt": ("cvt_13", (60, 72), _THREE),
    "cvt_gelu": ("cvt_21", (64, 64), _THREE | {"activation": "gelu"}),
}
FAMILIES = ("swin", "pvt_v2", "twins_svt", "pvt", "cvt")


class Pyramid(Case):
    """A case whose maps are computed together with its logits, and whose reference is kept."""

    @functools.cached_property
    def module(self) -> torch.nn.Module:
        return self.reference().double()

    @functools.cached_property
    def outputs(self) -> tuple[np.ndarray, list[np.ndarray]]:
        def forward(variables, images):
            logits, state = self.model.apply(variables, images, train=False, mutable=["stage_maps"])
            found = state["stage_maps"]
            return logits, [found[f"stage_map_{i}"][0] for i in range(len(self.config["depths"]))]

        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: np.asarray(x, np.float64), self.variables)
            return jax.device_get(jax.jit(forward)(wide, self.images))

    @property
    def ours64(self) -> np.ndarray:
        return self.outputs[0]


@functools.cache
def case(key: str, num_classes: int = 7) -> Pyramid:
    name, size, fields = CASES[key]
    return Pyramid(name, size, num_classes=num_classes, **fields)


@pytest.mark.parametrize("key", CASES)
def test_logits_are_the_references(key):
    assert case(key).error(case(key).module) <= FLOAT64_BAR


@pytest.mark.parametrize("key", CASES)
def test_names_both_ways(key):
    case(key).assert_round_trip()


@pytest.mark.parametrize("key", ["swin", "cvt"])
def test_features_are_the_references(key):
    assert case(key, num_classes=0).error() <= FLOAT64_BAR


@pytest.mark.parametrize("key", FAMILIES)
def test_gradients_are_the_references(key):
    case(key).assert_same_gradients()


def _tanh_gelu(module: torch.nn.Module) -> None:
    def change(parent: torch.nn.Module) -> None:
        for name, part in parent.named_children():
            if "GELU" in type(part).__name__:
                setattr(parent, name, torch.nn.GELU(approximate="tanh"))

    module.apply(change)


def _eps(module: torch.nn.Module) -> None:
    norms = [x for x in module.modules() if isinstance(x, torch.nn.LayerNorm)]
    norms[len(norms) // 2].eps *= 10


def _head_order(module: torch.nn.Module) -> None:
    """The last block's heads interleaved in what they give."""
    names = ("attn.proj.weight", "attention.output.dense.weight")
    weights = [x for name, x in module.named_parameters() if name.endswith(names)]
    weights[-1].data = weights[-1].data.unflatten(1, (4, -1)).transpose(1, 2).flatten(1)


def _no_mask(module: torch.nn.Module) -> None:
    for part in module.modules():
        if getattr(part, "attn_mask", None) is not None:
            part.attn_mask = None


def _bias_scale(module: torch.nn.Module) -> None:
    for name, x in module.named_parameters():
        if "relative_position_bias_table" in name:
            x.data *= 1.01


def _no_shift(module: torch.nn.Module) -> None:
    for part in module.modules():
        if hasattr(part, "shift_size"):
            part.shift_size = (0, 0)


def _attention_scale(module: torch.nn.Module) -> None:
    for part in module.modules():
        if isinstance(getattr(part, "scale", None), float):
            part.scale *= 2.0
            part.fused_attn = False


def _batch_norm_eps(module: torch.nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps *= 10


@pytest.mark.parametrize(
    ("key", "change"),
    [
        *((key, change) for key in FAMILIES for change in (_tanh_gelu, _eps, _head_order)),
        ("swin", _no_mask),
        ("swin", _no_shift),
        ("swin", _bias_scale),
        ("twins_svt", _attention_scale),
        ("cvt", _attention_scale),
        ("cvt", _batch_norm_eps),
    ],
)
def test_another_formula_is_seen(key: str, change: Callable[[torch.nn.Module], None]):
    module = copy.deepcopy(case(key).module)
    change(module)
    assert case(key).error(module) > FLOAT64_BAR


@pytest.mark.parametrize("key", ["pvt", "cvt"])
def test_what_hugging_face_ships_is_another_formula(key):
    this = case(key)
    assert this.error(this.reference(matched=False)) > FLOAT64_BAR


@pytest.mark.parametrize("key", ["swin", "pvt_v2", "pvt_v2_li", "twins_svt"])
def test_feature_maps_are_timms(key):
    this = case(key)
    _, ours = this.outputs
    pixels = torch.from_numpy(this.images).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = this.module.forward_intermediates(pixels, intermediates_only=True)
    assert len(ours) == len(theirs) == 4
    for x, y in zip(ours, theirs, strict=True):
        assert relative_error(x, y.movedim(1, -1).numpy()) <= FLOAT64_BAR


@pytest.mark.parametrize(("key", "strides"), [("pvt", (4, 8, 16, 32)), ("cvt", (4, 8, 16))])
def test_feature_map_shapes(key, strides):
    this = case(key)
    maps = jax.eval_shape(functools.partial(feature_maps, this.model), this.variables, this.images)
    wanted = [
        (2, -(-this.size[0] // s), -(-this.size[1] // s), width)
        for s, width in zip(strides, this.config["hidden_sizes"], strict=True)
    ]
    assert [x.shape for x in maps] == wanted


@pytest.mark.parametrize("key", FAMILIES)
def test_stochastic_depth_grows_over_the_blocks(key):
    """Linearly over all of them; in CvT over those of the last stage alone."""
    this = case(key)
    model = this.model.clone(drop_path_rate=0.5)
    rates = []

    def record(run, args, kwargs, context):
        if isinstance(context.module, DropPath):
            rates.append(args[1])
        return run(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(
            functools.partial(model.apply, train=True, mutable=["batch_stats"]),
            this.variables,
            this.images,
            rngs={"dropout": jax.random.key(0)},
        )
    depths = this.config["depths"]
    wanted = np.linspace(0, 0.5, sum(depths))
    if key == "cvt":
        wanted = np.concatenate([np.zeros(sum(depths[:-1])), np.linspace(0, 0.5, depths[-1])])
    np.testing.assert_allclose(rates, np.repeat(wanted, 2), atol=1e-12)


def step(key: str):
    """A gradient in bfloat16 with blocks dropped and computed again, and its arguments."""
    this = case(key)
    model = this.model.clone(dtype=jnp.bfloat16, drop_path_rate=0.1, remat=True)

    def loss(params, rest, images):
        variables = {**rest, "params": params}
        rngs = {"dropout": jax.random.key(0)}
        logits, _ = model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
        assert logits.dtype == jnp.float32
        return (logits**2).mean()

    rest = {k: v for k, v in this.variables.items() if k != "params"}
    images = this.images.astype(np.float32)
    return jax.grad(loss), (this.variables["params"], rest, images)


@pytest.mark.parametrize("key", FAMILIES)
def test_a_step_in_bfloat16_has_float32_gradients(key):
    gradient, args = step(key)
    for path, g in jax.tree_util.tree_leaves_with_path(jax.eval_shape(gradient, *args)):
        assert g.dtype == jnp.float32, path


def test_a_step_in_bfloat16_is_finite():
    """Where there is most of everything: batch statistics, and a class token."""
    gradient, args = step("cvt")
    for path, g in jax.tree_util.tree_leaves_with_path(jax.jit(gradient)(*args)):
        assert np.isfinite(g).all(), path


@pytest.mark.parametrize("key", FAMILIES)
def test_bfloat16_stays_near(key):
    this = case(key)
    model = this.model.clone(dtype=jnp.bfloat16)
    logits = jax.jit(functools.partial(model.apply, train=False))(this.variables, this.images)
    assert logits.dtype == jnp.float32
    assert relative_error(np.asarray(logits), this.ours64) < 0.1


@pytest.mark.parametrize("key", ["pvt_v2", "twins_svt", "pvt"])
def test_images_that_are_too_small(key):
    this = case(key)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), "float32")
    with pytest.raises(UserError, match="take larger images"):
        jax.eval_shape(functools.partial(this.model.init, train=False), jax.random.key(0), images)


def test_a_class_token_lies_on_no_map():
    config = case("pvt").config | {"sr_ratios": (8, 4, 2, 2)}
    model = from_config(config, num_classes=7)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    with pytest.raises(UserError, match="the last one must be 1"):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)

"""What only CrossViT has, beside the battery's tests; against timm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from zoo_cases import Case, resizing
from zoo_training import drop_rates

from vit_jax.checkpoint import names
from vit_jax.checkpoint.names import shapes_of
from vit_jax.errors import UserError
from vit_jax.families.registry import registered
from vit_jax.layers.block import vit_block
from vit_jax.layers.interpolation import keys_cubic
from vit_jax.layers.norm import LayerNorm5
from vit_jax.models.crossvit import resize_bicubic
from vit_jax.parity.figures import FLOAT64_BAR, relative_error

PLAIN, DAGGER = "crossvit_tiny_240", "crossvit_9_dagger_240"
# timm counts patches right only where both branches have whole ones.
SIZES = {PLAIN: (120, 120), DAGGER: (120, 240)}
DEPTHS = {PLAIN: ((1, 2),), DAGGER: ((1, 2), (1, 1))}


@functools.cache
def case(name: str = PLAIN, num_classes: int = 7) -> Case:
    return Case(name, SIZES[name], num_classes=num_classes, depths=DEPTHS[name])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("torch_bicubic", keys_cubic),  # JAX's constant, a = -0.5
        ("exact_gelu", nn.gelu),
        ("vit_block", functools.partial(vit_block, activation=nn.gelu)),
        ("LayerNorm", LayerNorm5),
    ],
)
def test_another_formula_is_seen(monkeypatch, name, wrong):
    monkeypatch.setattr(f"vit_jax.models.crossvit.{name}", wrong)
    assert relative_error(case().ours(case().model), case().theirs()) > FLOAT64_BAR


@pytest.mark.parametrize("size", [(224, 210), (7, 33), (12, 16)])
def test_images_are_resized_as_torch_does(size):
    images = np.random.default_rng(0).standard_normal((2, 12, 16, 3))
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False
    )
    with jax.enable_x64(True):
        ours = np.asarray(resize_bicubic(jnp.asarray(images), size))
    np.testing.assert_allclose(ours, wanted.permute(0, 2, 3, 1).numpy(), atol=1e-12)


def test_drop_path_follows_the_deepest_branch():
    rates = drop_rates(case().model.clone(drop_path_rate=0.2, depths=DEPTHS[DAGGER]), SIZES[PLAIN])
    short = {path: rate for path, (rate, _) in rates.items() if path.endswith("residual_0")}
    assert short == pytest.approx(
        {
            "encoder_0/branch_0_block_0/residual_0": 0.0,
            "encoder_0/branch_1_block_0/residual_0": 0.0,
            "encoder_0/branch_1_block_1/residual_0": 0.1,
            "encoder_0/fusion_0/residual_0": 0.1,
            "encoder_0/fusion_1/residual_0": 0.1,
            "encoder_1/branch_0_block_0/residual_0": 0.2,
            "encoder_1/branch_1_block_0/residual_0": 0.2,
            "encoder_1/fusion_0/residual_0": 0.2,
            "encoder_1/fusion_1/residual_0": 0.2,
        }
    )


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [(240, 240), (100, 91)])
def test_weights_for_another_image_size(name, size):
    old = case(name)
    edits = resizing(old.config, shapes_of(old.flat), old.size, size, "timm")
    assert set(edits) == {"posembed_0/pos_embedding", "posembed_1/pos_embedding"}
    resized = {k: edits[k](x) if k in edits else x for k, x in old.flat.items()}
    wanted = names.expected_shapes(old.config, num_classes=7, image_size=size)
    assert shapes_of(resized) == wanted
    tokens = old.flat["posembed_1/pos_embedding"][:, :1]
    np.testing.assert_array_equal(resized["posembed_1/pos_embedding"][:, :1], tokens)


@pytest.mark.parametrize(("name", "side"), [(PLAIN, 240), ("crossvit_15_dagger_408", 408)])
def test_the_weights_tell_the_image_size(name, side):
    config = registered()[name].config.to_dict()
    shapes = names.expected_shapes(config, num_classes=7, image_size=(side, side))
    assert names.image_size_of(config, shapes) == (side, side)


def test_convolutions_for_other_patches():
    model = case(DAGGER).model.clone(patch_sizes=(12, 8))
    with pytest.raises(UserError, match=r"patches of \[12, 16\] pixels, not of 8"):
        jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False), np.zeros((1, 120, 120, 3))
        )

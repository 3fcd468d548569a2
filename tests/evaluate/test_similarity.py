"""Similarity of tokens by depth: beside what Flax captures, and on the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from recipes import random_images, random_params
from shapes import param_shapes

from vit_jax import checkpoint, cli
from vit_jax.configs import models as configs
from vit_jax.errors import UserError
from vit_jax.evaluate.similarity import similarity_by_depth
from vit_jax.families.registry import resolve, shrunk
from vit_jax.models import from_config

CONFIG = configs.get_testing_config().to_dict()


def by_numpy(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    cosines = np.abs(x @ x.swapaxes(1, 2))
    n = x.shape[1]
    return (cosines.sum(axis=(1, 2)) - n) / (n * (n - 1))


def test_every_block_as_flax_captures_it_and_on_the_command_line(tmp_path, capsys):
    model, images = from_config(CONFIG, num_classes=3), random_images((3, 32, 32, 3))
    params = random_params(param_shapes(CONFIG, num_classes=3, num_patches=4), 0.5)

    def forward(variables, images):
        _, state = model.apply(variables, images, train=False, capture_intermediates=True)
        return state["intermediates"]["Transformer"], similarity_by_depth(model, variables, images)

    pixels = [Image.fromarray(np.uint8(127.5 * x + 127.5)) for x in images]
    for i, image in enumerate(pixels):
        image.save(tmp_path / f"{i}.png")
    images = np.stack([np.asarray(x, np.float32) for x in pixels]) / 127.5 - 1
    seen, found = jax.jit(forward)({"params": params}, images)
    depth = CONFIG["transformer"]["num_layers"]
    assert list(found) == [f"Transformer/encoderblock_{i}" for i in range(depth)]
    for i, value in enumerate(found.values()):
        captured = seen[f"encoderblock_{i}"]["__call__"][0]
        np.testing.assert_allclose(value, by_numpy(captured), rtol=1e-5)

    checkpoint.save(tmp_path / "x.npz", params, model={**CONFIG, "family": "vit"})
    words = ["tokens", str(tmp_path / "x.npz"), str(tmp_path), "--batch=2", "--json"]
    assert cli.main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["images"] == 3
    for block, (name, value) in zip(shown["blocks"], found.items(), strict=True):
        assert block["block"] == name
        assert block["similarity"] == pytest.approx(float(value.mean()), rel=1e-4)


def shapes_of(name: str, size: int = 64, **fields):
    model = from_config({**shrunk(resolve(name).config.to_dict()), **fields}, num_classes=2)

    def found(images):
        variables = model.init(jax.random.key(0), images, train=False)
        return similarity_by_depth(model, variables, images)

    return jax.eval_shape(found, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("deit_tiny_patch16_224", [f"Transformer/encoderblock_{i}" for i in range(11)]),
        ("refiner_vit_s", ["encoderblock_0", "encoderblock_1"]),
        ("tnt_s_patch16_224", ["encoderblock_0", "encoderblock_1"]),
    ],
)
def test_one_figure_a_block_in_order(name, blocks):
    """Also where a block gives attention weights too, or tokens inside each patch."""
    found = shapes_of(name, **({"num_layers": 11} if len(blocks) == 11 else {}))
    assert list(found) == blocks
    assert {x.shape for x in found.values()} == {(2,)}


class Blockless(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(2, name="block_of_0_layers")(x)


def test_models_that_cannot_be_looked_at_are_refused():
    images = jnp.zeros((1, 16, 16, 3))
    model = Blockless()
    variables = model.init(jax.random.key(0), images, train=False)
    with pytest.raises(UserError, match="Blockless has no blocks"):
        similarity_by_depth(model, variables, images)
    with pytest.raises(UserError, match="scan=False"):
        shapes_of("deit_tiny_patch16_224", scan=True)


def test_what_is_wrong_is_said(tmp_path, capsys):
    assert cli.main(["tokens", "nowhere.npz", str(tmp_path), "--batch=0"]) == cli.BAD_INPUT
    assert "--batch must be at least 1; got 0" in capsys.readouterr().err

"""`vit_jax.load`: what a loaded model gives for pictures as they are, against its linen module."""

import functools
import json

import jax
import numpy as np
import pytest
from image_helpers import encode
from PIL import Image
from recipes import GOLDEN, random_params

import vit_jax
from vit_jax.checkpoint import io, names, recorded
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import resolve, shrunk
from vit_jax.families.text import Text
from vit_jax.input_pipeline.patches import patch_batch
from vit_jax.tree import arrays
from vit_jax.two_towers import TwoTowers
from vit_jax.variables import collections

SIZE, CLASSES = 32, 5
WAY = Preprocess(SIZE, crop=0.875, resize="shortest", method="bicubic", antialias=True)
TEXT = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "vocab_size": 177}


def written(folder, name, num_classes=CLASSES, texts=None, **fields):
    """A file that says everything of a tiny model with random weights."""
    config = resolve(name).config.to_dict()
    config = config | shrunk(config) | fields
    shapes = names.expected_shapes(config, image_size=(SIZE, SIZE), num_classes=num_classes)
    flat = arrays(random_params(shapes, 0.2))
    described = recorded.described(
        f"tiny-{name}", config, WAY, list("abcde")[:num_classes], (SIZE, SIZE), texts
    )
    path = folder / f"{name}-{num_classes}.npz"
    variables = collections(flat, names.statistics(config))
    io.save(path, variables, model=config, metadata={recorded.OURS: json.dumps(described)})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def averaged(folder):
    """A Vision Transformer whose head reads the average of the tokens."""
    return vit_jax.load(written(folder, "ViT-Ti_16", classifier="gap", patches={"size": (8, 8)}))


@functools.cache
def photograph(height=50, width=70):
    """Large patches of colour, as a photograph has them."""
    colours = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3))
    return np.kron(colours, np.ones((10, 10, 1))).astype(np.uint8)


def test_logits_features_and_tokens_are_those_of_the_module(averaged):
    images = [photograph(), photograph(70, 40), photograph(30, 30)]
    prepared = np.stack([averaged.reader.preprocess(image) for image in images])
    apply = jax.jit(functools.partial(averaged.module.apply, train=False))
    logits, features, tokens = (
        averaged(images),
        averaged.features(images),
        averaged.tokens(images),
    )
    assert logits.std() > 0.1
    np.testing.assert_allclose(logits, apply(averaged.variables, prepared), rtol=1e-4, atol=1e-5)
    head = averaged.variables["params"]["head"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, atol=1e-4)
    assert tokens.shape == (3, 16, features.shape[1])
    np.testing.assert_allclose(tokens.mean(axis=1), features, atol=1e-5)
    assert averaged.name == "tiny-ViT-Ti_16"
    assert averaged.class_names == list("abcde")


def test_an_image_is_taken_in_every_form(averaged, tmp_path):
    image = photograph()
    path = tmp_path / "photo.png"
    path.write_bytes(encode(image))
    turned = Image.fromarray(np.rot90(image))
    turned.getexif()[0x0112] = 6  # to be turned by a quarter when it is shown
    forms = [str(path), path, image, Image.fromarray(image), turned, image[None][0]]
    wanted = averaged.prepare(image)
    for form in forms:
        np.testing.assert_array_equal(averaged.prepare(form), wanted)
    assert turned.size == (50, 70)  # the caller's picture is as it was
    grey = averaged.prepare(image[..., 0])
    np.testing.assert_array_equal(grey, averaged.prepare(np.repeat(image[..., :1], 3, axis=2)))
    one = averaged(image)
    assert one.shape == (1, CLASSES)
    np.testing.assert_allclose(averaged(np.stack([image] * 2)), np.repeat(one, 2, 0), atol=1e-5)
    # More than pass through the model at once; the last batch is not whole.
    np.testing.assert_allclose(averaged([image] * 34), np.repeat(one, 34, 0), atol=1e-5)


def test_two_towers_give_vectors_of_one_space(folder):
    text = Text("bert", str(GOLDEN / "lit/bert_vocab.txt"), 16)
    path = written(folder, "LiT-B16B", num_classes=0, texts=text, text=TEXT)
    model = vit_jax.load(path)
    texts = ["a cat", "a dog"]
    zimg, ztxt = model([photograph(), photograph(70, 40)], texts)
    assert isinstance(model.reader, TwoTowers)
    tokens = model.reader.tokenizer(texts)
    prepared = np.stack([model.prepare(photograph()), model.prepare(photograph(70, 40))])
    wanted = jax.jit(lambda v, i, t: model.module.apply(v, i, t)[:2])
    for ours, theirs in zip((zimg, ztxt), wanted(model.variables, prepared, tokens), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.features(photograph()), zimg[:1], atol=1e-5)
    shown = model.tokens(photograph())
    assert shown.shape[:2] == (1, (SIZE // 16) ** 2)
    assert np.isfinite(shown).all()
    np.testing.assert_allclose(model.texts("a cat"), ztxt[:1], atol=1e-5)
    with pytest.raises(UserError, match=r"model\(images, texts\)"):
        model(photograph())
    alone = vit_jax.load(path, part="img")
    assert alone.features(photograph()).shape == (1, shown.shape[2])


def test_a_model_of_variable_size_gets_each_image_in_its_aspect_ratio(folder):
    model = vit_jax.load(written(folder, "siglip2-base-patch16-naflex", num_classes=0))
    images = [photograph(), photograph(30, 90)]
    batch = patch_batch(images, preprocess=WAY)
    assert len({tuple(grid) for grid in batch.grid.tolist()}) == 2
    apply = jax.jit(lambda variables, x: model.module.apply(variables, x)[0])
    wanted = apply(model.variables, batch)
    np.testing.assert_allclose(model.features(images), wanted, atol=1e-5)
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3
    np.testing.assert_array_equal(model.prepare(images[1]).patches, batch.patches[1])


def test_what_cannot_be_done_is_said(averaged, folder, tmp_path):
    image = photograph()
    for ask, message in (
        (lambda: averaged([]), "got none"),
        (lambda: averaged(image, ["a cat"]), "takes images alone"),
        (lambda: averaged.texts(["a cat"]), "no text tower"),
        (lambda: averaged(image / 255), "expected pixels of uint8.*prepared already"),
        (lambda: averaged(3), "got int"),
        (lambda: averaged(image[..., :2]), "has 2 channels"),
        (lambda: averaged(tmp_path / "gone.png"), "gone.png"),
        (lambda: averaged(Image.new("F", (3, 3))), "floating-point"),
    ):
        with pytest.raises(UserError, match=message):
            ask()
    headless = vit_jax.load(written(folder, "ViT-Ti_16", num_classes=0))
    with pytest.raises(UserError, match="has no head"):
        headless(image)
    assert headless.features(image).shape == (1, 32)


def test_a_model_that_shows_no_tokens_says_so(folder):
    mixer = vit_jax.load(written(folder, "Mixer-B_16"))
    assert mixer.features(photograph()).ndim == 2
    with pytest.raises(UserError, match="shows no tokens"):
        mixer.tokens(photograph())


def test_nothing_heavy_loads_before_a_model_does():
    import subprocess
    import sys

    code = "import sys, vit_jax; assert vit_jax.load and not {'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

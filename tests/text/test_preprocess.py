"""The original's `preprocess` module: its names, and its pixels to the last bit."""

import dataclasses
import pathlib

import numpy as np
import pytest

from vit_jax import preprocess
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline.geometry import resize_bilinear_exactly
from vit_jax.input_pipeline.transforms import preprocess_image

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/lit"
SIZE = 24


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "image_golden.npz")


@pytest.fixture(scope="module")
def images(golden):
    return [golden[f"image{i}"] for i in range(6)]


@pytest.mark.parametrize("crop", [False, True])
def test_pixels_are_the_originals_to_the_last_bit(golden, images, crop):
    ours = preprocess.PreprocessImages(SIZE, crop)(images)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, golden[f"lit_crop{crop:d}"])


def test_the_resizing_is_tensorflows_to_the_last_bit(golden, images):
    for i, image in enumerate(images):
        resized = resize_bilinear_exactly(image, SIZE, SIZE)
        np.testing.assert_array_equal(resized, golden[f"resize{i}"])
        np.testing.assert_array_equal((resized - 127.5) / 127.5, golden[f"eval{i}"])


def test_the_field_is_for_every_reader(golden, images):
    spec = Preprocess.from_dict(Preprocess(SIZE, truncate=True).to_dict())
    ours = np.stack([preprocess_image(image, spec) for image in images])
    np.testing.assert_array_equal(ours, golden["lit_crop0"])
    # Without it the pixels are others, by up to a whole number of 255.
    whole = dataclasses.replace(spec, truncate=False)
    others = np.stack([preprocess_image(image, whole) for image in images])
    assert 1e-3 < np.abs(ours - others).max() < 2 / 255


def test_examples_get_pixels_and_tokens(golden, images):
    pp = preprocess.get_pp(
        tokenizer_name="bert", vocab_path=str(GOLDEN / "bert_vocab.txt"), max_len=5, size=SIZE
    )
    example = {"image": images[0], "text": "a cat", "label": 3}
    found = pp(example)
    np.testing.assert_array_equal(found["image"], golden["lit_crop0"][0])
    assert found["tokens"].tolist() == pp({"text": b"a cat"})["tokens"].tolist() == [2, 6, 14, 0, 0]
    assert found["label"] == 3
    assert example["image"] is images[0]
    assert pp({"label": 3}) == {"label": 3}


def test_tokenizers_have_the_originals_names():
    bert = preprocess.get_tokenizer("bert")(vocab_path=GOLDEN / "bert_vocab.txt", max_len=4)
    assert (bert.cls_token, bert(["a cat"]).tolist()) == (2, [[2, 6, 14, 0]])
    pieces = preprocess.get_tokenizer("sentencepiece")(GOLDEN / "sp_tiny.model", max_len=3)
    assert (pieces.eos_token, pieces(["a photo of"]).tolist()) == (1, [[3, 7, 1]])
    with pytest.raises(UserError, match="unknown tokenizer 'sentencpiece'"):
        preprocess.get_tokenizer("sentencpiece")


@pytest.mark.parametrize("crop", [False, True])
def test_what_is_no_image_has_one_message(images, crop):
    make = preprocess.PreprocessImages(SIZE, crop)
    for image in (images[0].astype(np.float32), images[0][..., 0], images[0][..., :2]):
        with pytest.raises(UserError, match="expected an image of uint8"):
            make([image])

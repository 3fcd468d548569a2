"""Pixels and class numbers on the way to the devices: the same run, to the last bit."""

import itertools

import jax
import numpy as np
import pytest
import tiny_run

from vit_jax import input_pipeline
from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh
from vit_jax.evaluate.evaluation import evaluate
from vit_jax.input_pipeline import recipes
from vit_jax.input_pipeline import transforms as tr
from vit_jax.train import engine as engine_lib
from vit_jax.train.inputs import Inputs

OFFICIAL = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize("statistics", [OFFICIAL, IMAGENET, CLIP, ((0.1,) * 5, (0.3,) * 5)])
def test_every_value_of_a_pixel_is_normalised_as_on_the_host(statistics):
    levels = np.arange(256, dtype=np.uint8)[None, :, None, None]
    image = np.broadcast_to(levels, (1, 256, 1, len(statistics[0])))
    made = jax.jit(Inputs(*statistics, 3))({"image": image, "label": np.array([2])})
    expected = tr.MeanStd(*statistics)({"image": image})["image"]
    np.testing.assert_array_equal(made["image"], expected)
    np.testing.assert_array_equal(made["label"], [[0, 0, 1]])
    # A product with the reciprocal, which the compiler would make of it, is seen.
    mean, std = map(tr.in_pixels, statistics)
    assert ((image - mean) * (np.float32(1) / std) != expected).any()


@pytest.mark.parametrize(
    ("changes", "train", "test"),
    [
        ({}, False, False),  # The original's way: bilinear, not rounded.
        ({"resize_method": "bicubic"}, True, True),
        ({"resize_method": "bicubic", "erasing": 0.25}, False, True),
        ({"augment": "randaug"}, True, False),
        ({"augment": "autoaug"}, True, False),
        ({"augment": "three_augment", "color_jitter": 0.3}, True, False),
        ({"augment": "crop", "resize": 20}, False, False),
        ({"augment": "crop", "resize": 20, "color_jitter": 0.3}, True, False),
        ({"augment": "digits", "resize_method": "bicubic"}, False, True),
        ({"augment": "none", "resize_method": "bicubic"}, True, True),
    ],
)
def test_pixels_where_the_preparation_ends_in_them(changes, train, test):
    pp = common.get_config().pp.unlock()
    pp.crop = 16
    pp.update(changes)
    assert recipes.ends_in_pixels(pp, train=True) is train
    assert recipes.ends_in_pixels(pp, train=False) is test


def test_losses_and_figures_are_equal_to_the_last_bit(tmp_path):
    config = tiny_run.config(
        tiny_run.write_images(tmp_path),
        pp__resize_method="bicubic",
        mixing__mixup_alpha=0.3,
        warmup_steps=0,
    )
    config.pp.mean, config.pp.std = IMAGENET
    config = common.with_defaults(config)
    engine = engine_lib.build(config, make_mesh(config.mesh), num_classes=2)
    results, kinds = [], []
    for compact in (False, True):
        train, test = input_pipeline.get_datasets(config, compact=compact)
        state, losses = engine.init(jax.random.key(0)), []
        for batch in itertools.islice(train, 3):
            kinds.append({name: (x.dtype.name, x.ndim) for name, x in batch.items()})
            state, scalars = engine.train_step(
                state, jax.device_put(batch, engine.batch), jax.random.key(1)
            )
            losses.append(float(scalars["loss"]))
        figures = evaluate(engine, state.best_variables, test, 2)  # 10 images, batches of 4.
        results.append((losses, figures, jax.tree.map(tiny_run.describe, state.params)))
    assert kinds[0] == {"image": ("float32", 4), "label": ("float32", 2)}
    assert kinds[-1] == {"image": ("uint8", 4), "label": ("int32", 1)}
    assert results[0] == results[1]
    assert len(set(results[0][0])) == 3


def test_several_labels_stay_a_vector(tmp_path):
    tiny_run.write_images(tmp_path, 2, 2)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(
            f"path,label\n{split}/cat/0.png,cat\n{split}/dog/0.png,cat;dog\n"
        )
    config = tiny_run.config(tmp_path / "train.csv")
    train, test = input_pipeline.get_datasets(config, compact=True)
    assert next(iter(train))["label"].shape == (8, 2)
    assert next(iter(test))["label"].sum() == 3

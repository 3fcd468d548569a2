"""Pixels as we prepare image files against timm's transform and transformers' processors."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from zoo_cases import config_of

from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import resolve
from vit_jax.parity import pixels, subject
from vit_jax.parity.pixels import PIXEL_BAR, compare_pixels, timm_tag

SIZE = (32, 32)
DEIT = {"hidden_size": 24, "num_layers": 1, "num_heads": 3, "mlp_dim": 48}
PUBLISHED = resolve("deit_tiny_patch16_224").preprocess
TORCHVISION = "transformers, backend torchvision"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two pictures of other shapes, one of them grey, with edges and fine texture."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (75, 110, 3)), rng.integers(0, 256, (90, 61))
    colour[20:50, 30:70] = (255, 0, 40)
    Image.fromarray(colour.astype(np.uint8)).save(folder / "colour.jpg", quality=90)
    Image.fromarray(grey.astype(np.uint8)).save(folder / "grey.png")
    return [folder / "colour.jpg", folder / "grey.png"]


@pytest.fixture(scope="module")
def deit():
    tiny = config_of("deit_tiny_patch16_224", **DEIT)
    return subject.prepare(tiny, None, SIZE, 5, seed=0)


def by_name(found):
    return {p.pipeline: p for p in found.pipelines}


def test_pixels_are_the_libraries(deit, images):
    """timm sets itself as it publishes this model: what we have recorded of it is tested too."""
    way = dataclasses.replace(PUBLISHED, size=SIZE)
    this = dataclasses.replace(deit, preprocess=way, registered="deit_tiny_patch16_224")
    found = compare_pixels(this, images)
    timm, pil, torchvision = found.pipelines
    assert timm.config == "timm's own of deit_tiny_patch16_224.fb_in1k"
    assert timm.verdict == "same"
    assert timm.largest <= PIXEL_BAR
    assert timm.logits < 1e-5
    assert timm.top1_agreement == 1
    # Its centre lies a pixel away where the border is odd, which it says.
    assert (pil.verdict == "same") == (not pil.known)
    assert torchvision.pipeline == TORCHVISION
    assert not torchvision.counts
    assert torchvision.largest > PIXEL_BAR


def test_a_processor_of_transformers_is_the_same_where_nothing_is_cropped(deit, images):
    way = Preprocess(size=SIZE, method="bicubic", antialias=True)
    found = compare_pixels(dataclasses.replace(deit, preprocess=way), images)
    assert by_name(found)["transformers, backend pil"].verdict == "same"
    assert found.verdict == "same"
    assert by_name(found)["timm"].config == "as our export writes it"


@pytest.mark.parametrize(
    ("changed", "largest"),
    [
        ({"method": "bilinear"}, 5),
        ({"crop": 0.875}, 5),
        ({"resize": "squash"}, 5),
        ({"mean": (0.485, 0.456, 0.407)}, 0.2),
    ],
)
def test_other_pixels_are_seen(deit, images, changed, largest):
    way = dataclasses.replace(PUBLISHED, size=SIZE, **changed)
    this = dataclasses.replace(deit, preprocess=way, registered="deit_tiny_patch16_224")
    found = compare_pixels(this, images)
    timm = by_name(found)["timm"]
    assert timm.largest > largest
    assert timm.mean > 0
    assert timm.logits > 1e-4
    assert timm.verdict == found.verdict == "differs"


def test_a_difference_that_is_known_is_said(deit, images):
    found = compare_pixels(dataclasses.replace(deit, preprocess=Preprocess(size=SIZE)), images[:1])
    assert found.verdict == "differs"
    assert "timm antialiases images that it shrinks" in by_name(found)["timm"].known[0]


def test_tags_of_timm(deit):
    def tag(name):
        return timm_tag(dataclasses.replace(deit, registered=name))

    assert tag("deit_tiny_patch16_224") == "deit_tiny_patch16_224.fb_in1k"
    assert tag(None) is None


def test_what_no_library_prepares_is_refused(deit, monkeypatch):
    monkeypatch.setattr(pixels.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="no library that is installed"):
        pixels.pipelines(deit)

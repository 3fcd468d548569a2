"""What model cards and open_clip's configs beside weights say."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax.checkpoint import hf_dir, recorded
from vit_jax.families.preprocess import Preprocess

MODEL = {"embed_dim": 512, "vision_cfg": {"image_size": 224}, "text_cfg": {}}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Text\nlicense: mit\n", "apache-2.0"),
        ("---\r\ntags:\r\n- x\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("---\nlicense:\n- cc-by-nc-4.0\n- mit\n---\n", "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nmodel:\n  license: mit\n---\n", ""),
        ("# A card without front matter\nlicense: mit\n", ""),
    ],
)
def test_the_licence_is_that_of_the_cards_front_matter(card, licence, tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_bytes(card.encode())
    beside = hf_dir.read(tmp_path / "model.safetensors")
    assert recorded.read_beside(beside).licence == licence


def test_a_card_beside_any_other_file_is_not_of_its_weights(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert hf_dir.read(tmp_path / "mine.npz") == {}


@pytest.mark.parametrize(
    ("told", "way"),
    [
        (None, Preprocess(224, 1.0, "shortest", "bicubic", True, **CLIP)),
        (
            {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
             "resize_mode": "squash"},
            Preprocess(224, 1.0, "squash", "bicubic", True),
        ),
        ({"resize_mode": "longest"}, None),
        ({"interpolation": "random"}, None),
    ],
)  # fmt: skip
def test_open_clips_config_tells_how_images_are_prepared(told, way, tmp_path):
    fields = {"model_cfg": MODEL} | ({} if told is None else {"preprocess_cfg": told})
    (tmp_path / "open_clip_config.json").write_text(json.dumps(fields))
    found = recorded.read_beside(hf_dir.read(tmp_path / "open_clip_model.safetensors"))
    assert found.preprocess == way
    assert found.image_size == (224, 224)
    assert bool(found.notes) is (way is None)

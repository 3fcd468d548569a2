"""A run that trains both towers of CLIP, its state split over four devices."""

import numpy as np
import tiny_run
from ml_collections import ConfigDict

from vit_jax import checkpoint, train
from vit_jax.tree import arrays

TOWER = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
STEPS, LENGTH, VOCABULARY = 2, 12, 514  # bytes, bytes that end words, and the ends of texts


def config_of(images):
    found = tiny_run.config(
        images,
        pairs=True,
        total_steps=STEPS,
        checkpoint_every=1,
        eval_every=STEPS,
        warmup_steps=0,
        optim="adamw",
        base_lr=1e-2,
        keep_checkpoints=0,
        mesh__data=1,
        mesh__fsdp=4,
    )
    tower = {**TOWER, "activation": "quick_gelu"}
    found.model = ConfigDict(
        {
            "family": "clip",
            "image": {"family": "clip_vision", "patch_size": 8, **tower},
            "text_model": "clip_text",
            "text": {**tower, "vocab_size": VOCABULARY, "max_length": LENGTH},
            "out_dim": 8,
        }
    )
    vocabulary = images / "bpe.txt"
    vocabulary.write_text("#version: 0.2\n")
    found.text.update({"kind": "clip", "vocabulary": str(vocabulary), "length": LENGTH})
    found.freeze_rules = ((r".*", False),)
    return found


def test_both_towers_and_the_factor_are_trained(tmp_path):
    images = tiny_run.write_images(tmp_path / "images", test=9, captions=True)
    workdir = tmp_path / "run"
    train.train_and_evaluate(config_of(images), workdir)
    lines = [line for line in tiny_run.lines(workdir) if "train_loss" in line]
    assert [np.isfinite(line["train_loss"]) for line in lines] == [True] * STEPS
    assert abs(lines[0]["t"] - 1 / 0.07) < 1e-3
    stored = tiny_run.stored(workdir)
    changed = [name for name, x in stored[STEPS].items() if not np.array_equal(x, stored[1][name])]
    for part in ("'img'", "'txt'", "'pre_norm'", "'head'", "'t'"):
        assert any(part in name for name in changed), part
    found = checkpoint.identify(workdir)
    assert found.config["image"]["activation"] == "quick_gelu"
    assert found.text.kind == "clip"
    assert "txt/head/kernel" in arrays(checkpoint.load(workdir))

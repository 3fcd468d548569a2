"""Files of DINOv3: what is said of them, and which of its models they are."""

import numpy as np
import pytest
import transformers
from zoo_cases import config_of

from vit_jax import cli
from vit_jax.checkpoint import convert, identify, names
from vit_jax.checkpoint.files.formats import write_npz, write_safetensors
from vit_jax.checkpoint.names import exported
from vit_jax.families.registry import resolve
from vit_jax.parity.subject import random_params

BIASED = "vit_small_patch16_dinov3_qkvb"


@pytest.fixture(scope="module")
def weights():
    """Of the registered model, with biases of queries and values that are zero."""
    config = resolve(BIASED).config.to_dict()
    flat = random_params(names.expected_shapes(config, num_classes=0, image_size=(64, 64)), 0)
    zero = ("query/bias", "value/bias")
    return {n: np.zeros_like(x) if n.endswith(zero) else x for n, x in flat.items()}


@pytest.fixture
def official(weights, tmp_path):
    """A file of the official code, whose masks leave nothing of a bias of keys."""
    state = dict(exported(weights, resolve(BIASED).config.to_dict(), "torch"))
    bias = np.array(state["blocks.3.attn.qkv.bias"])
    bias[400] = np.inf
    bias[401] = 3.0
    state["blocks.3.attn.qkv.bias"] = np.where(np.isinf(bias), np.float32(5), bias)
    state["local_cls_norm.weight"] = np.ones(384, np.float32)
    path = tmp_path / "official.safetensors"
    write_safetensors(path, state, {})
    return path


def test_an_official_file_is_known_and_its_zeros_are_said(official, weights, tmp_path, capsys):
    found = identify(official, every_number=True)
    assert (found.models, found.layout) == ((BIASED,), "torch")
    assert any("bias_mask" in step for step in found.steps)
    block = "Transformer/encoderblock_#/MultiHeadDotProductAttention_#"
    assert found.zero_biases == {f"{block}/query/bias": 12, f"{block}/value/bias": 12}
    assert cli.main(["inspect", str(official)]) == 0
    assert f"{block}/query/bias: all 12 biases" in capsys.readouterr().out
    plain = tmp_path / "plain.safetensors"
    report = convert(official, plain, to="timm", model=BIASED.removesuffix("_qkvb"))
    assert any("all zero, left out" in step for step in report.steps)
    assert identify(plain).models == (BIASED.removesuffix("_qkvb"),)
    weights = {**weights, "Transformer/encoderblock_2/MultiHeadDotProductAttention_0/query/bias":
               np.ones((6, 64), np.float32)}  # fmt: skip
    ours = tmp_path / "ours.npz"
    write_npz(ours, weights)
    there = tmp_path / "there.safetensors"
    convert(ours, there, to="torch")
    refused = tmp_path / "refused.safetensors"
    args = ["convert", str(there), str(refused), "--to", "timm"]
    assert cli.main([*args, "--model", BIASED.removesuffix("_qkvb")]) == cli.BAD_INPUT
    assert f"read it as a {BIASED}" in capsys.readouterr().err
    assert not refused.exists()


def test_satellites_want_other_images():
    known = resolve("vit_large_patch16_dinov3_qkvb.sat493m").preprocess
    assert (known.mean, known.std) == ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
    assert (known.resize, known.method, known.antialias) == ("squash", "bilinear", True)
    photographs = resolve("vit_large_patch16_dinov3_qkvb").preprocess
    assert photographs.mean == (0.485, 0.456, 0.406)
    assert resolve("vit_7b_patch16_dinov3.sat493m").preprocess == known
    family = names.get(config_of(BIASED))
    said = family.leaves_open(config_of("vit_large_patch16_dinov3_qkvb"))
    assert "sat493m" in said[0]
    assert family.leaves_open(config_of(BIASED)) == ()


def test_transformers_loads_what_is_written(weights, tmp_path):
    ours, folder = tmp_path / "ours.npz", tmp_path / "folder"
    write_npz(ours, weights)
    convert(ours, folder, to="hf")
    model, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "DINOv3ViTModel"
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(p.numel() for p in model.parameters()) == 21_596_544
    found = identify(folder)
    assert (found.models, found.recorded) == ((BIASED,), True)
    assert found.preprocess == resolve(BIASED).preprocess

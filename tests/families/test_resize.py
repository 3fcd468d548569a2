import numpy as np
import pytest
import torch
from recipes import GOLDEN, random_params
from timm.layers import resample_abs_pos_embed

from vit_jax import checkpoint, cli
from vit_jax.checkpoint import interpolate_posembed, names, resize_posembed
from vit_jax.errors import UserError
from vit_jax.families.registry import config_of, shrunk
from vit_jax.families.resize import METHODS
from vit_jax.tree import arrays

GOLDEN_POSEMB = np.load(GOLDEN / "posemb.npz")
PAIRS = [((14, 14), (24, 24)), ((14, 14), (7, 9)), ((7, 5), (14, 14)), ((3, 3), (2, 8)),
         ((24, 24), (10, 3)), ((1, 1), (3, 3)), ((4, 6), (1, 1))]  # fmt: skip


def golden_case(key):
    old, new, cls = map(int, key.split("_"))
    shape = (1, old**2 + cls, 5)
    return np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32), new, cls


@pytest.mark.parametrize("key", list(GOLDEN_POSEMB))
def test_equals_the_original(key):
    posemb, new, cls = golden_case(key)
    got = interpolate_posembed(posemb, new**2 + cls, bool(cls))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, GOLDEN_POSEMB[key], rtol=0, atol=1e-6)


def torch_resize(posemb, old, new, **how):
    grid = torch.tensor(posemb).reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=new, **how)
    return grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).numpy()


@pytest.mark.parametrize("key", ["14_24_0", "24_14_0", "4_8_0"])
def test_half_pixel_resize_is_not_the_original(key):
    posemb, new, _ = golden_case(key)
    old = (int(key.split("_")[0]),) * 2
    half_pixel = torch_resize(posemb, old, (new, new), mode="bilinear", align_corners=False)
    aligned = torch_resize(posemb, old, (new, new), mode="bilinear", align_corners=True)
    assert np.abs(aligned - GOLDEN_POSEMB[key]).max() < 4e-6  # torch computes in float32
    assert np.abs(half_pixel - GOLDEN_POSEMB[key]).max() > 1e-2


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_timm_method(old, new):
    posemb = np.random.default_rng(0).uniform(-1, 1, (1, old[0] * old[1], 5))
    want = torch_resize(posemb, old, new, mode="bicubic", antialias=True, align_corners=False)
    got = resize_posembed(posemb, old, new, 0, "timm")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    # timm itself computes in float32, whose weights are off by up to 2e-6 here.
    theirs = resample_abs_pos_embed(torch.tensor(posemb).float(), list(new), list(old), 0).numpy()
    np.testing.assert_allclose(got, theirs, rtol=0, atol=4e-6)


def test_prefix_and_dtype_are_kept():
    posemb = np.random.default_rng(0).uniform(-1, 1, (1, 2 + 12, 5)).astype(np.float16)
    for method in ("official", "timm"):
        got = resize_posembed(posemb, (3, 4), (5, 2), 2, method)
        assert got.shape == (1, 12, 5)
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got[:, :2], posemb[:, :2])


def test_rows_and_columns_are_not_confused():
    # A plane that is linear in both directions keeps its corners.
    rows, columns = np.meshgrid(np.linspace(0, 1, 3), np.linspace(5, 9, 4), indexing="ij")
    posemb = np.stack([rows, columns], -1).reshape(1, 12, 2)
    got = resize_posembed(posemb, (3, 4), (5, 7), 0).reshape(5, 7, 2)
    np.testing.assert_allclose(got[:, 0, 0], np.linspace(0, 1, 5), atol=1e-12)
    np.testing.assert_allclose(got[0, :, 1], np.linspace(5, 9, 7), atol=1e-12)


def test_bad_grids():
    posemb = np.zeros((1, 13, 4), np.float32)
    with pytest.raises(UserError, match="form no square"):
        interpolate_posembed(posemb, 17, True)
    with pytest.raises(UserError, match="form no square"):
        interpolate_posembed(np.zeros((1, 17, 4)), 14, True)
    with pytest.raises(UserError, match=r"does not hold 16"):
        interpolate_posembed(posemb, 17, True, old_grid=(3, 4), new_grid=(2, 7))
    with pytest.raises(UserError, match=r"expected position embeddings"):
        resize_posembed(posemb, (3, 3), (2, 2), 1)
    with pytest.raises(UserError, match="unknown resize method"):
        resize_posembed(posemb, (3, 4), (2, 2), 1, "nearest")
    got = interpolate_posembed(posemb, 17, True, old_grid=(3, 4), new_grid=(2, 8))
    assert got.shape == (1, 17, 4)


def test_convert_offers_every_method_and_inspect_tells_the_default(tmp_path, capsys):
    config = shrunk(config_of("dino_vits16"))
    shapes = names.expected_shapes(config, num_classes=0, image_size=(64, 64))
    checkpoint.save(tmp_path / "bare.npz", random_params(shapes, 0.5))
    source, target = (str(tmp_path / name) for name in ("source.npz", "target.npz"))
    checkpoint.convert(tmp_path / "bare.npz", source, to="official", model=config)
    assert cli.main(["inspect", source]) == 0
    assert "resized by the method 'dino'" in capsys.readouterr().out
    ask = ["convert", source, target, "--to", "official", "--image-size", "96x32"]
    name = "posembed_input/pos_embedding"
    for method in METHODS:
        assert cli.main([*ask, "--resize-method", method]) == 0
        assert f"method {method!r}" in capsys.readouterr().out
        old, new = (arrays(checkpoint.load(path, config))[name] for path in (source, target))
        np.testing.assert_array_equal(new, resize_posembed(old, (4, 4), (6, 2), 1, method))
    assert cli.main([*ask, "--resize-method", "geometric"]) == 2

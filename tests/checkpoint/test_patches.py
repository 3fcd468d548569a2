"""FlexiViT: patches of another size, against timm."""

import jax
import numpy as np
import pytest
import timm
import torch
from recipes import random_params
from safetensors.torch import save_file
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import checkpoint_filter_fn

from vit_jax import checkpoint, cli
from vit_jax.checkpoint import names
from vit_jax.errors import UserError
from vit_jax.families.registry import config_of, shrunk
from vit_jax.families.resize import resample_patches
from vit_jax.layers.interpolation import antialiased_weights, keys_cubic
from vit_jax.models import from_config
from vit_jax.parity.figures import relative_error

SIZES = [(8, 8), (24, 24), (12, 20), (30, 16), (16, 9)]


@pytest.mark.parametrize("new", SIZES)
def test_kernels_are_resampled_as_timm_does(new, monkeypatch):
    kernel = np.random.default_rng(0).standard_normal((16, 16, 3, 5))
    theirs = torch.from_numpy(kernel).permute(3, 2, 0, 1)
    monkeypatch.setattr("timm.layers.patch_embed.DTYPE_INTERMEDIATE", torch.float64)
    wanted = resample_patch_embed(theirs, list(new)).permute(2, 3, 1, 0).numpy()
    assert relative_error(resample_patches(kernel, new), wanted) <= 1e-9
    rows, columns = (antialiased_weights(16, side, keys_cubic) for side in new)
    plain = np.einsum("ij,jkcd,lk->ilcd", rows, kernel, columns)
    assert relative_error(plain, wanted) > 0.1


def test_a_larger_patch_reads_what_the_smaller_one_did():
    """Of patches that were enlarged from small ones, as the pseudo-inverse has it."""
    rng = np.random.default_rng(0)
    kernel, patch = rng.standard_normal((8, 8, 3, 5)), rng.standard_normal((8, 8, 3))
    rows, columns = (antialiased_weights(8, side, keys_cubic) for side in (16, 20))
    large = np.einsum("ij,jkc,lk->ilc", rows, patch, columns)
    small_token, token = (
        np.einsum("hwc,hwcd->d", x, k)
        for x, k in ((patch, kernel), (large, resample_patches(kernel, (16, 20))))
    )
    np.testing.assert_allclose(token, small_token, rtol=1e-9)


def test_converted_weights_are_timms(tmp_path):
    """timm's own reader, with the same file, for a model of other patches and as many of them."""
    sizes = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 5,
        "act_layer": "gelu_tanh",
    }
    generator = torch.Generator().manual_seed(0)
    large = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), **sizes)
    with torch.no_grad():
        for x in large.parameters():
            x.copy_(0.1 * torch.randn(x.shape, generator=generator))
    save_file(large.state_dict(), tmp_path / "timm.safetensors")
    config = config_of("ViT-Ti_16")
    config |= {"hidden_size": 32, "patches": {"size": (16, 16)}}
    config["transformer"] |= {"num_layers": 2, "num_heads": 2, "mlp_dim": 128}
    source, target = tmp_path / "source.npz", tmp_path / "target.npz"
    how = {"to": "official", "model": config, "image_size": (64, 96)}
    checkpoint.convert(tmp_path / "timm.safetensors", source, **how)
    ask = ["convert", str(source), str(target), "--to", "official", "--patch-size", "8x12"]
    assert cli.main(ask) == 0
    found = checkpoint.identify(target)
    assert found.image_size == (32, 72)
    assert tuple(found.config["patches"]["size"]) == (8, 12)

    small = timm.create_model(
        "vit_tiny_patch16_224", patch_size=(8, 12), img_size=(32, 72), **sizes
    )
    state = checkpoint_filter_fn(large.state_dict(), small, antialias=True)
    small.load_state_dict(state)
    images = np.random.default_rng(0).standard_normal((2, 32, 72, 3)).astype(np.float32)
    model, params = from_config(found.config, num_classes=5), checkpoint.load(target)
    ours = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, images)
    with torch.no_grad():
        theirs = small.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert relative_error(np.asarray(ours), theirs) <= 2e-5
    # The other way too: our file for timm, with patches as they were.
    checkpoint.convert(target, tmp_path / "back.npz", to="official", patch_size=(16, 16))
    assert checkpoint.identify(tmp_path / "back.npz").image_size == (64, 96)


@pytest.mark.parametrize("name", ["cct_7_3x1_32", "mae_vit_base_patch16", "R+ViT-Ti_16"])
def test_what_reads_no_patches_side_by_side_is_refused(name, tmp_path):
    config = shrunk(config_of(name))
    size = names.default_size(config)
    shapes = names.expected_shapes(config, num_classes=0, image_size=size)
    checkpoint.save(tmp_path / "x.npz", random_params(shapes, 0.1))
    how = {"to": "official", "model": config, "patch_size": (8, 8)}
    with pytest.raises(UserError, match="cannot be changed"):
        checkpoint.convert(tmp_path / "x.npz", tmp_path / "y.npz", **how)
    assert not (tmp_path / "y.npz").exists()

import functools
import json

import ml_dtypes
import numpy as np
import pytest
import timm
import torch
from checkpoint_helpers import SHAPES, assert_equal_trees, narrow, narrow_params
from recipes import flatten, random_params, unflatten
from safetensors import safe_open
from safetensors.torch import load_file
from shapes import param_shapes

from vit_jax import checkpoint
from vit_jax.checkpoint.stacked import stack_blocks
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import get, resolve

SMALL = {  # name: changes that keep a real timm model small
    "ViT-Ti_16": {"depth": 2},
    "ViT-B_32": {"depth": 1},
    "ViT-S_16-gap-norep": {"depth": 1},
    "R26+ViT-S_32": {"depth": 1},
    "R+ViT-Ti_16": {"depth": 2},
    "R50+ViT-B_16": {"depth": 1},
    "Mixer-B_32": {},
}


def model(name: str, depth: int | None = None):
    config = resolve(name).config.to_dict()
    if depth:
        config["transformer"] |= {"num_layers": depth}
    return config


@functools.cache
def weights(name: str, num_classes: int, grid: int):
    shapes = param_shapes(model(name, **SMALL[name]), num_classes=num_classes, num_patches=grid**2)
    return random_params(shapes, scale=0.02)


def build_timm(described: dict) -> torch.nn.Module:
    """As the module's text says that timm builds it."""
    args = described["model_args"]
    if "act_layer" in described:
        args = args | {"act_layer": timm.layers.get_act_layer(described["act_layer"])}
    if "class" in described:
        assert described["class"] == "timm.models.mlp_mixer.MlpMixer"
        return timm.models.mlp_mixer.MlpMixer(**args)
    return timm.create_model(described["architecture"], **args)


@pytest.mark.parametrize("name", SMALL)
def test_real_timm_loads_strictly(tmp_path, name):
    config = model(name, **SMALL[name])
    grid = 3
    params = weights(name, 5, grid)
    path = tmp_path / "x.safetensors"
    checkpoint.save_timm(path, params, config)
    with safe_open(path, "np") as f:
        described = json.loads(f.metadata()["timm"])
    theirs = build_timm(described)
    theirs.load_state_dict(load_file(path), strict=True)
    assert theirs.num_classes == 5
    size = grid * get(config).stride(config)[0]
    with torch.inference_mode():
        assert theirs(torch.zeros(1, 3, size, size)).shape == (1, 5)
    # A live model's state dict, and the file's tensors, lead back to the same bits.
    for state in (theirs.state_dict(), load_file(path)):
        assert_equal_trees(checkpoint.from_torch(state, config)["params"], params)


def test_timm_uses_tanh_gelu_and_norm_eps_as_we_do(tmp_path):
    for name in ("ViT-Ti_16", "Mixer-B_32", "R+ViT-Ti_16"):
        config = model(name, **SMALL[name])
        checkpoint.save_timm(tmp_path / "x", weights(name, 5, 3), config)
        with safe_open(tmp_path / "x", "np") as f:
            theirs = build_timm(json.loads(f.metadata()["timm"]))
        activations = [m for m in theirs.modules() if "GELU" in type(m).__name__]
        assert activations
        assert all(isinstance(m, timm.layers.GELUTanh) for m in activations)
        assert {m.eps for m in theirs.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_stock_sizes_keep_their_timm_name(tmp_path):
    for name in ("ViT-Ti_16", "R+ViT-Ti_16"):
        config = resolve(name).config
        posemb = 7 * 7 if name.startswith("R") else 14 * 14
        shapes = param_shapes(config, num_classes=1000, num_patches=posemb)
        checkpoint.save_timm(tmp_path / "x", random_params(shapes, 0.02), name)
        with safe_open(tmp_path / "x", "np") as f:
            described = json.loads(f.metadata()["timm"])
        assert described["architecture"] == resolve(name).timm_name
        assert described["pretrained_cfg"]["input_size"] == [3, 224, 224]


@pytest.mark.parametrize("classifier", ["token", "gap"])
def test_custom_size_not_square_no_head(tmp_path, classifier):
    config = {
        "patches": {"size": (8, 8)},
        "hidden_size": 64,
        "transformer": {"mlp_dim": 100, "num_heads": 4, "num_layers": 3},
        "classifier": classifier,
        "representation_size": None,
    }
    shapes = param_shapes(config, num_classes=0, num_patches=4 * 6)
    params = random_params(shapes, scale=0.02)
    with pytest.raises(UserError, match="form no square"):
        checkpoint.save_timm(tmp_path / "x", params, config)
    checkpoint.save_timm(tmp_path / "x", params, config, image_size=(32, 48))
    with safe_open(tmp_path / "x", "np") as f:
        theirs = build_timm(json.loads(f.metadata()["timm"]))
    theirs.load_state_dict(load_file(tmp_path / "x"), strict=True)
    with torch.inference_mode():
        assert theirs(torch.zeros(1, 3, 32, 48)).shape == (1, 64)


def test_custom_mixer(tmp_path):
    config = narrow(SHAPES["Mixer-B_32"]["config"])
    params = narrow_params(config)
    checkpoint.save_timm(tmp_path / "x", params, config)
    with safe_open(tmp_path / "x", "np") as f:
        theirs = build_timm(json.loads(f.metadata()["timm"]))
    theirs.load_state_dict(load_file(tmp_path / "x"), strict=True)


def test_preprocessing_is_recorded(tmp_path):
    config, params = model("ViT-Ti_16", depth=2), weights("ViT-Ti_16", 5, 3)

    def recorded(**kwargs):
        checkpoint.save_timm(tmp_path / "x", params, config, **kwargs)
        with safe_open(tmp_path / "x", "np") as f:
            return json.loads(f.metadata()["timm"])["pretrained_cfg"]

    assert recorded()["mean"] == [0.5, 0.5, 0.5]
    assert recorded()["crop_mode"] == "squash"
    own = Preprocess(48, 0.9, "shortest", "bicubic", True, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    got = recorded(preprocess=own)
    assert (got["crop_pct"], got["crop_mode"], got["interpolation"]) == (0.9, "center", "bicubic")
    assert (got["mean"], got["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    # timm understands what was written.
    data = timm.data.resolve_data_config({}, pretrained_cfg=got)
    assert data["crop_pct"] == 0.9
    assert tuple(data["input_size"]) == (3, 48, 48)


@pytest.mark.parametrize("num_classes", [3, 0])
@pytest.mark.parametrize("name", SHAPES)
def test_every_model_round_trips(name, num_classes):
    config = narrow(SHAPES[name]["config"])
    params = narrow_params(config, num_classes=num_classes)
    state = checkpoint.to_torch({"params": params}, config)
    assert_equal_trees(checkpoint.from_torch(state, config)["params"], params)
    stacked = checkpoint.to_torch({"params": stack_blocks(params)}, config)
    assert_equal_trees(stacked, state)


def test_bfloat16_torch_tensors_and_own_memory():
    config = narrow(SHAPES["ViT-Ti_16"]["config"])
    params = unflatten(
        {n: x.astype(ml_dtypes.bfloat16) for n, x in flatten(narrow_params(config)).items()}
    )
    state = checkpoint.to_torch({"params": params}, config)
    assert {x.dtype for x in state.values()} == {np.dtype(ml_dtypes.bfloat16)}
    tensors = {
        n: torch.nn.Parameter(torch.from_numpy(x.view(np.int16)).view(torch.bfloat16))
        for n, x in state.items()
    }
    back = checkpoint.from_torch(tensors, config)["params"]
    assert_equal_trees(back, params)
    state["norm.bias"][:] = 0
    assert flatten(params)["Transformer/encoder_norm/bias"].astype(np.float32).any()


def test_scanned_and_linen_models():
    from vit_jax.models import get_model

    plain = narrow(SHAPES["ViT-Ti_16"]["config"])
    params = narrow_params(plain)
    state = checkpoint.to_torch({"params": params}, plain)
    scanned = plain | {"transformer": plain["transformer"] | {"scan": True}}
    got = checkpoint.from_torch(state, scanned)["params"]
    assert_equal_trees(got, stack_blocks(params))
    module = get_model("Mixer-B_32", num_classes=4)
    with pytest.raises(UserError, match="missing"):
        checkpoint.from_torch(state, module)


def test_pre_logits_is_refused_or_dropped_in_the_open():
    config = narrow(SHAPES["ViT-Ti_16"]["config"]) | {"representation_size": 6}
    params = narrow_params(config)
    with pytest.raises(UserError, match="drop_pre_logits"):
        checkpoint.to_torch({"params": params}, config)
    dropped = checkpoint.drop_pre_logits(params)
    assert "pre_logits" in params
    assert params.keys() - dropped.keys() == {"pre_logits", "head"}
    state = checkpoint.to_torch({"params": dropped}, config | {"representation_size": None})
    assert "head.weight" not in state


def test_what_does_not_fit_is_named():
    config = narrow(SHAPES["ViT-Ti_16"]["config"])
    params = narrow_params(config)
    state = checkpoint.to_torch({"params": params}, config)
    wide = dict(state, **{"head.weight": np.ones((3, 9), "f4")})
    with pytest.raises(UserError, match=r"'head/kernel': expected shape \(8, 3\), got \(9, 3\)"):
        checkpoint.from_torch(wide, config)
    with pytest.raises(UserError, match=r"missing: head.bias"):
        checkpoint.from_torch({n: x for n, x in state.items() if n != "head.bias"}, config)
    with pytest.raises(UserError, match="unexpected: reg_token"):
        checkpoint.from_torch(dict(state, reg_token=np.ones(3)), config)
    with pytest.raises(UserError, match="no layout 'torchvision'"):
        checkpoint.from_torch(state, config, layout="torchvision")
    with pytest.raises(UserError, match="Did you mean"):
        checkpoint.from_torch(state, "ViT-B17")
    hybrid = narrow(SHAPES["R26+ViT-S_32"]["config"])
    with pytest.raises(UserError, match="no hybrid with ResNet stages"):
        checkpoint.save_timm("/nonexistent/x", narrow_params(hybrid), hybrid)

"""The 23 models at their full depth and real names, but narrow enough to be quick."""

import copy

import numpy as np
from recipes import flatten, golden_json, random_params
from shapes import param_shapes

SHAPES = golden_json("shapes.json")
IN_TIMM = [name for name in SHAPES if name != "testing"]


def narrow(config: dict) -> dict:
    """The config with tiny widths; every name stays."""
    config = copy.deepcopy(config)
    if "hidden_dim" in config:
        return config | {"hidden_dim": 6, "tokens_mlp_dim": 5, "channels_mlp_dim": 7}
    heads = 2
    config["hidden_size"] = 4 * heads
    config["transformer"] |= {"num_heads": heads, "mlp_dim": 5}
    if config.get("resnet"):
        config["resnet"]["width_factor"] = 1 / 16
    return config


def narrow_params(config: dict, num_classes: int = 3, num_patches: int = 4) -> dict:
    shapes = param_shapes(config, num_classes=num_classes, num_patches=num_patches)
    return random_params(shapes, scale=0.5)


def assert_equal_trees(got: dict, want: dict) -> None:
    """Names, dtypes and bits."""
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype, name
        assert got[name].shape == want[name].shape, name
        assert np.asarray(got[name]).tobytes() == np.asarray(want[name]).tobytes(), name

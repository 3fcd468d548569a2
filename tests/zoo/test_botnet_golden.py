"""BoTNet's parts against figures of the paper's equations (tests/golden/zoo/botnet.npz).

Made once in NumPy; `scaled_both` agrees with `bottleneck-transformer-pytorch` and `content_only`
with timm's layer, both to 1e-15.
"""

import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from zoo_official import FLOAT32_BAR

from vit_jax.checkpoint import names
from vit_jax.families.registry import resolve
from vit_jax.families.sizes import recorded
from vit_jax.models.botnet import AttentionNorm, BottleneckAttention, Unit
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.variables import collections

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "zoo"
FACTS = json.loads((FOLDER / "botnet.json").read_text())
FIGURES = dict(np.load(FOLDER / "botnet.npz"))
NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def drawn(case: str) -> dict[str, np.ndarray]:
    """Tensors by the names of the figures, and 'x' [N, H, W, C]."""
    facts, rng, digest = FACTS["cases"][case], np.random.default_rng(0), hashlib.sha256()
    tensors = {}
    for name, (shape, kind) in sorted(facts["shapes"].items()):
        x = rng.standard_normal(shape).astype(np.float32) * np.float32(FACTS["scale"])
        x = x + np.float32(1) if kind == "norm_weight" else x
        x = np.abs(x) + np.float32(0.5) if kind == "bn_var" else x
        digest.update(np.ascontiguousarray(x).tobytes())
        tensors[name] = x
    assert digest.hexdigest() == facts["sha256"]
    x = np.random.default_rng(1).standard_normal(facts["input"]).astype(np.float32)
    return tensors | {"x": np.moveaxis(x, 1, -1)}


def attention_weights(t: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    projections = {"query": t["wq"], "key": t["wk"], "value": t["wv"]}
    kernels = {f"{n}/kernel": w.reshape(len(w), heads, -1) for n, w in projections.items()}
    return kernels | {"row_offsets": t["rel_h"], "column_offsets": t["rel_w"]}


def run(
    module: nn.Module, flat: dict[str, np.ndarray], x: np.ndarray, dtype: Any = np.float64, **train
) -> np.ndarray:
    with jax.enable_x64(dtype == np.float64):
        wide = {name: value.astype(dtype) for name, value in flat.items()}
        statistics = [name for name in wide if name.endswith(("/mean", "/var"))]
        return np.asarray(program(module, **train)(collections(wide, statistics), x.astype(dtype)))


@functools.cache
def program(module: nn.Module, **train):
    return jax.jit(lambda v, x: module.apply(v, x, **train))


def assert_same(figure: str, module: nn.Module, flat, x: np.ndarray, **train) -> None:
    """In both types; and a change by 1 % of any tensor is seen."""
    ours = run(module, flat, x, **train)
    assert relative_error(ours, FIGURES[figure]) <= FLOAT64_BAR
    narrow = run(module, flat, x, np.float32, **train)
    assert relative_error(narrow, FIGURES[figure]) <= FLOAT32_BAR
    for name, value in flat.items():
        larger = run(module, {**flat, name: value * np.float32(1.01)}, x, **train)
        assert relative_error(larger, FIGURES[figure]) > FLOAT64_BAR, name


@pytest.mark.parametrize("figure", ["scaled_both", "content_only"])
def test_attention_is_the_papers(figure):
    t, heads = drawn("attention"), FACTS["cases"]["attention"]["heads"]
    flat = attention_weights(t, heads)
    scaled = figure == "scaled_both"
    assert_same(figure, BottleneckAttention(heads, scale_positions=scaled), flat, t["x"])
    other = run(BottleneckAttention(heads, scale_positions=not scaled), flat, t["x"])
    assert relative_error(other, FIGURES[figure]) > FLOAT64_BAR


@pytest.mark.parametrize("mode", ["scaled_both", "unscaled", "content_only"])
@pytest.mark.parametrize("map_of", ["attention", "attention_14"])
def test_attention_on_two_maps_and_without_a_scale(map_of, mode):
    """The figure of the paper scales nothing: twice the queries, of heads of 4, undo our scale."""
    t, heads = drawn(map_of), FACTS["cases"][map_of]["heads"]
    t = {**t, "wq": 2 * t["wq"]} if mode == "unscaled" else t
    module = BottleneckAttention(heads, scale_positions=mode != "content_only")
    figure = {"attention": mode, "attention_14": f"14_{mode}"}[map_of]
    for dtype, bar in ((np.float64, FLOAT64_BAR), (np.float32, FLOAT32_BAR)):
        ours = run(module, attention_weights(t, heads), t["x"], dtype)
        assert relative_error(ours, FIGURES[figure]) <= bar
        if figure == "14_scaled_both":
            pooled = ours.reshape(2, 7, 2, 7, 2, -1).mean((2, 4))
            assert relative_error(pooled, FIGURES["14_pooled"]) <= bar


@pytest.mark.parametrize("figure", ["s1", "s2", "s2_shortcut_activation"])
def test_the_unit_is_the_papers(figure):
    """With the shortcut of a ResNet, and with that of the authors' code."""
    case = figure[:2]
    t, facts = drawn(case), FACTS["cases"][case]
    attention = functools.partial(BottleneckAttention, facts["heads"], scale_positions=True)

    def mix(features, stride, *, name):
        return AttentionNorm(attention, stride, nn.relu, name=name)

    weights = attention_weights(t, facts["heads"])
    flat = {f"mix/attention/{name}": x for name, x in weights.items()}
    parts = {"conv1": "reduce", "conv3": "expand", "conv_s": "shortcut"}
    flat |= {f"{ours}/conv/kernel": t[n][None, None] for n, ours in parts.items() if n in t}
    norms = {"bn1": "reduce", "bn2": "mix", "bn3": "expand", "bn_s": "shortcut"}
    for theirs, ours in norms.items():
        leaves = {leaf: f"{theirs}.{name}" for name, leaf in NORM.items()}
        flat |= {f"{ours}/norm/{leaf}": t[n] for leaf, n in leaves.items() if n in t}

    activated = figure.endswith("activation")
    module = Unit(32, facts["stride"], mix, nn.relu, shortcut_activation=activated)
    assert_same(figure, module, flat, t["x"], drop_path_rate=0.0, train=False)


# Published numbers of parameters, in millions. S1 has them with squeeze and excitation only.
PUBLISHED = {"botnet50": 20.8, "botnet_s1_59": 33.5, "botnet_s1_110": 54.7}


def test_sizes_are_near_the_published():
    for name, millions in PUBLISHED.items():
        assert recorded()[name].params == pytest.approx(millions * 1e6, rel=0.03)


def test_s1_keeps_the_map_of_its_last_stage():
    """And tables of positions are as large as the maps that they are for."""
    for name, rows in (("botnet50", [27, 13, 13]), ("botnet_s1_59", [27] * 6)):
        config = resolve(name).config.to_dict()
        shapes = names.expected_shapes(config, num_classes=2, image_size=(224, 224))
        tables = [s[0] for key, s in shapes.items() if key.endswith("row_offsets")]
        assert sorted(tables, reverse=True) == rows
        assert names.image_size_of(config, shapes) == (224, 224)
        resized = names.resizes(config, (224, 224), (256, 192), "timm")
        made = {key: edit(np.zeros(shapes[key])).shape for key, edit in resized.items()}
        wanted = names.expected_shapes(config, num_classes=2, image_size=(256, 192))
        assert made == {key: wanted[key] for key in made}

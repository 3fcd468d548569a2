"""BoTNet's parts against figures of the paper's equations (tests/golden/zoo/botnet.npz).

Made once in NumPy; `scaled_both` agrees with `bottleneck-transformer-pytorch` and `content_only`
with timm's layer, both to 1e-15.
"""

import functools
import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import linen as nn

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


def run(module: nn.Module, flat: dict[str, np.ndarray], x: np.ndarray, **train) -> np.ndarray:
    wide = {name: value.astype(np.float64) for name, value in flat.items()}
    with jax.enable_x64(True):
        apply = jax.jit(lambda v, x: module.apply(v, x, **train))
        statistics = [name for name in wide if name.endswith(("/mean", "/var"))]
        return np.asarray(apply(collections(wide, statistics), x.astype(np.float64)))


@pytest.mark.parametrize("figure", ["scaled_both", "content_only"])
def test_attention_is_the_papers(figure):
    t, heads = drawn("attention"), FACTS["cases"]["attention"]["heads"]
    for scaled in (True, False):
        module = BottleneckAttention(heads, scale_positions=scaled)
        ours = run(module, attention_weights(t, heads), t["x"])
        same = relative_error(ours, FIGURES[figure]) <= FLOAT64_BAR
        assert same == (scaled == (figure == "scaled_both"))


@pytest.mark.parametrize("case", ["s1", "s2"])
def test_the_unit_is_the_papers(case):
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

    module = Unit(32, facts["stride"], mix, nn.relu)
    ours = run(module, flat, t["x"], drop_path_rate=0.0, train=False)
    assert relative_error(ours, FIGURES[case]) <= FLOAT64_BAR

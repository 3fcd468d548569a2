"""The recorded sizes against the code, and the code against published figures.

Each model is traced once, and everything that a trace tells is checked on it.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import golden_json

from vit_jax.checkpoint import names
from vit_jax.evaluate.flops import count_macs
from vit_jax.families import fingerprints, generate, sizes
from vit_jax.families.family import is_head
from vit_jax.families.registry import families, get, registered, shrunk
from vit_jax.tree import arrays
from vit_jax.variables import named

# Parameters counted by building the reference, buffers left out.
COUNTS = golden_json("zoo_params.json")["parameters"]


@pytest.fixture(scope="module")
def recorded():
    return sizes.recorded()


def test_every_registered_model_is_recorded(recorded):
    assert list(recorded) == list(registered()), "run `python -m vit_jax.families.generate`"


def test_what_else_is_generated_is_up_to_date():
    rows = json.loads(fingerprints.FILE.read_text())
    assert rows == generate.fingerprint_rows(), "run `python -m vit_jax.families.generate`"
    page = generate.TABLE.read_text()
    assert page == generate.with_table(page), "run `python -m vit_jax.families.generate`"


# One name for each config and image size: the other names repeat them.
_DISTINCT = {
    (spec.config.model_name, spec.preprocess.size): name for name, spec in registered().items()
}


def _one_of_each_family() -> list:
    """The smallest model of each family is traced in every run, the others in slow ones."""
    known, rows = sizes.recorded(), []
    for family in families():
        own = [n for n in _DISTINCT.values() if registered()[n].family == family]
        own.sort(key=lambda name: known[name].params)
        rows += own[:1] + [pytest.param(name, marks=pytest.mark.slow) for name in own[1:]]
    return rows


def _layouts(spec) -> list[str]:
    """All of the family's; of the original's own models some libraries have no such model."""
    config = spec.config.to_dict()
    if spec.family in ("vit", "mixer", "siglip_vision", "naflex_vision"):
        return names.holding(config)
    return list(names.layouts_of(config))


@pytest.mark.parametrize("name", _one_of_each_family())
def test_one_trace_has_the_recorded_sizes_and_the_names_of_every_table(recorded, name):
    assert recorded[name] == generate.measure(name), "run `python -m vit_jax.families.generate`"
    _, variables = generate.traced(name)
    shapes = {n: tuple(x.shape) for n, x in arrays(named(variables)).items()}
    spec = registered()[name]
    config, side = spec.config.to_dict(), spec.preprocess.size
    counted = sum(math.prod(x.shape) for x in arrays(variables["params"]).values())
    assert counted == COUNTS.get(name, counted)
    assert names.statistics(config) == arrays(variables.get("batch_stats", {})).keys()
    assert {shapes[kernel][-2] for kernel in get(config).stem(config)} <= {3}  # RGB's channels
    if get(config).shapes is not None:  # told without a trace
        sizes_ = {"num_classes": spec.num_classes, "image_size": (side, side)}
        assert names.expected_shapes(config, **sizes_) == shapes
    for layout in _layouts(spec):
        ours = {o for r in names.table(config, layout) for o in r.ours}
        # What is published without a head has rows for one.
        ours = {o for o in ours if spec.num_classes or not is_head(o)}
        zeros = {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.items()}
        assert ours in (set(shapes), set(names.reduced(zeros, config, layout, None)[0])), layout


@pytest.mark.parametrize("name", registered())
def test_counts_names_and_image_size(recorded, name):
    """Nothing is traced: what one trace proves is spread to every model by the recorded sizes."""
    spec = registered()[name]
    config, side = spec.config.to_dict(), spec.preprocess.size
    if name in COUNTS:
        assert recorded[name].params == COUNTS[name]
        assert names.default_size(config) == (side, side)
    for layout in _layouts(spec):
        rows = names.table(config, layout)
        ours, theirs = [o for r in rows for o in r.ours], [r.theirs for r in rows]
        assert len(set(ours)) == len(ours)
        assert len(set(theirs)) == len(theirs)
        assert set(get(config).stem(config)) <= set(ours)


def test_the_references_counts_cover_what_is_registered():
    """But for the original's, whose shapes stand in `shapes.json`, and what no package builds.

    Those count their parameters in their own tests.
    """
    none = ("torch", "official")
    builds = {n for n, f in families().items() if f.infer is None and f.reference not in none}
    assert COUNTS.keys() == {n for n, spec in registered().items() if spec.family in builds}


@pytest.mark.parametrize("family", families())
def test_the_tables_without_a_head(family):
    name = next(iter(families()[family].architectures))
    config = shrunk(registered()[name].config.to_dict())
    shapes = names.expected_shapes(config, num_classes=0, image_size=(64, 64))
    rows = names.table(config, names.LINEN)
    assert set(shapes) == {o for r in rows for o in r.ours if not o.startswith("head")}


def test_names_of_one_model_at_one_size_agree(recorded):
    for name, spec in registered().items():
        first = _DISTINCT[spec.config.model_name, spec.preprocess.size]
        assert recorded[name] == recorded[first]


@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [  # Swin (arXiv:2103.14030), Table 1; its DeiT-S and -B are ViT-S/16 and -B/16.
        ("ViT-S_16", 22, 4.6),
        ("ViT-B_16", 86, 17.5),
        ("vit_base_patch16_384", 86, 55.4),
        ("vit_large_patch16_384", 307, 190.7),
    ],
)
def test_published_figures(recorded, name, millions, gflops):
    assert recorded[name].params / 1e6 == pytest.approx(millions, rel=0.01)
    assert recorded[name].macs / 1e9 == pytest.approx(gflops, rel=0.01)


def _macs(function, *shapes):
    return count_macs(jax.make_jaxpr(function)(*(jnp.zeros(s) for s in shapes)).jaxpr)


def test_products_are_counted_by_hand():
    assert _macs(jnp.matmul, (2, 3), (3, 5)) == 2 * 3 * 5
    assert (
        _macs(lambda a, b: jnp.einsum("bqd,bkd->bqk", a, b), (7, 2, 3), (7, 5, 3)) == 7 * 2 * 5 * 3
    )
    assert _macs(jnp.add, (3,), (3,)) == 0


def test_convolutions_are_counted_by_hand():
    def conv(x, w, groups=1):
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    assert _macs(conv, (1, 8, 8, 4), (3, 3, 4, 6)) == (4 * 4 * 6) * (3 * 3 * 4)
    assert _macs(lambda x, w: conv(x, w, 2), (1, 8, 8, 4), (3, 3, 2, 6)) == (4 * 4 * 6) * (
        3 * 3 * 2
    )


def test_calls_loops_and_branches_are_looked_into():
    def twice(a):
        return jax.jit(jnp.dot)(a, a) + jax.checkpoint(jnp.dot)(a, a)

    def five_times(a):
        return jax.lax.scan(lambda c, _: (c @ c, None), a, length=5)[0]

    def branch(a):
        return jax.lax.cond(a[0, 0] > 0, twice, lambda x: x, a)

    @jax.custom_jvp
    def custom(a):
        return a @ a

    custom.defjvps(lambda tangent, out, a: tangent)

    def endless(a):
        return jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ c, a)

    assert _macs(twice, (2, 2)) == 2 * 8
    assert _macs(five_times, (2, 2)) == 5 * 8
    assert _macs(branch, (2, 2)) == 2 * 8
    assert _macs(custom, (2, 2)) == 8
    with pytest.raises(ValueError, match="unknown length"):
        _macs(endless, (2, 2))

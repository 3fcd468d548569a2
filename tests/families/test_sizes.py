"""The recorded sizes against the code, and the code against published figures."""

import json

import jax
import jax.numpy as jnp
import pytest

from vit_jax.evaluate.flops import count_macs
from vit_jax.families import fingerprints, generate, sizes
from vit_jax.families.registry import registered


@pytest.fixture(scope="module")
def recorded():
    return sizes.recorded()


def test_every_registered_model_is_recorded(recorded):
    assert list(recorded) == list(registered()), "run `python -m vit_jax.families.generate`"


def test_what_else_is_generated_is_up_to_date():
    rows = json.loads(fingerprints.FILE.read_text())
    assert rows == generate.fingerprint_rows(), "run `python -m vit_jax.families.generate`"
    readme = generate.README.read_text()
    assert readme == generate.with_table(readme), "run `python -m vit_jax.families.generate`"


# One name for each config and image size: the other names repeat them.
_DISTINCT = {
    (spec.config.model_name, spec.preprocess.size): name for name, spec in registered().items()
}


@pytest.mark.parametrize("name", _DISTINCT.values())
def test_recorded_sizes_are_the_codes(recorded, name):
    assert recorded[name] == generate.measure(name), "run `python -m vit_jax.families.generate`"


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

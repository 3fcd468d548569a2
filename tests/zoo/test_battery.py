"""Every family of image models against a library that has it, by a table: see `zoo_table.ROWS`."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from zoo_table import ROWS, Change, case

from vit_jax.families.registry import taking
from vit_jax.parity.figures import FLOAT64_BAR, relative_error


def name_of(change: Change) -> str:
    return getattr(change, "__name__", None) or "{kind.__name__}_eps_{index}".format(
        **change.keywords
    )


def rows(wanted) -> list[str]:
    return [key for key, row in ROWS.items() if wanted(row)]


REFERENCED = rows(lambda row: row.has_reference)


def test_every_family_has_a_row():
    """With whatever it can have: gradients and a formula that is not its own, and bfloat16."""

    def with_some(field: str) -> set[str]:
        return {row.family for row in ROWS.values() if getattr(row, field)}

    # LeViT's two layouts, the two PiT, DeiT and BEiT, and DINO are one model with other parts.
    alike = {"levit_conv": "levit", "pit": "pit_distilled", "deit": "deit_distilled"}
    alike |= {"beitv2": "beit", "dino": "deit_distilled"}
    # NaFlex has all of this in a file of its own: the libraries have its positions in float32.
    known = set(taking("images")) - {"naflex_vision"}
    every = {alike.get(name, name) for name in known}
    assert {row.family for row in ROWS.values()} == known
    assert with_some("bfloat16") >= every
    compared = {row.family for row in ROWS.values() if row.has_reference}
    for field in ("wrong", "gradients"):
        assert with_some(field) >= every & compared


@pytest.mark.parametrize("key", REFERENCED)
def test_logits_are_the_references(key):
    assert case(key).error() <= FLOAT64_BAR


@pytest.mark.parametrize("key", ROWS)
def test_names_both_ways(key):
    case(key).assert_round_trip()


@pytest.mark.parametrize("key", rows(lambda row: row.features))
def test_features_are_the_references(key):
    assert case(key, features=True).error() <= FLOAT64_BAR


@pytest.mark.parametrize("key", rows(lambda row: row.gradients))
def test_gradients_are_the_references(key):
    case(key).assert_same_gradients()


@pytest.mark.parametrize("key", rows(lambda row: row.maps is not None))
def test_feature_maps_are_timms(key):
    this = case(key)
    _, ours, _ = this.computed
    pixels = torch.from_numpy(this.images).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = this.module.forward_intermediates(
            pixels, intermediates_only=True, **ROWS[key].maps
        )
    for x, y in zip(ours, theirs, strict=True):
        assert relative_error(x, y.movedim(1, -1).numpy()) <= FLOAT64_BAR


@pytest.mark.parametrize(
    ("key", "change"),
    [
        pytest.param(key, c, id=f"{key}-{name_of(c)}")
        for key, row in ROWS.items()
        for c in row.wrong
    ],
)
def test_another_formula_is_seen(key: str, change: Change):
    module = copy.deepcopy(case(key).module)
    assert change(module) > 0
    assert case(key).error(module) > FLOAT64_BAR


@pytest.mark.parametrize("key", rows(lambda row: row.bfloat16))
def test_bfloat16_stays_near(key):
    """Near the figures in float64, and not the same: it is computed in bfloat16."""
    this = case(key)
    model = this.model.clone(dtype=jnp.bfloat16)
    logits = jax.jit(functools.partial(model.apply, train=False))(this.variables, this.images)
    assert logits.dtype == jnp.float32
    error = relative_error(np.asarray(logits), this.ours64)
    assert 1e-4 < error < ROWS[key].bfloat16

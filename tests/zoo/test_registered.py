"""Every registered model of the survey: size, names both ways; no torch, nothing computed."""

import json
import math
import pathlib

import pytest

from vit_jax.checkpoint import names
from vit_jax.checkpoint.names import default_size, expected_shapes, table
from vit_jax.families.registry import families, get, registered
from vit_jax.families.sizes import recorded
from vit_jax.parity.references import REFERENCES

# Parameters counted by building the reference (buffers left out); see the file. A family that no
# package builds has the published counts in its own test.
COUNTS = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "zoo_params.json").read_text())[
    "parameters"
]
# The original's own families, whose models of any size are recognised, have tests of their own.
SURVEY = {name: family for name, family in families().items() if family.infer is None}
MODELS = {s.name: s for s in registered().values() if s.family in SURVEY}


def test_the_figures_cover_what_is_registered():
    built = {n for n, spec in MODELS.items() if SURVEY[spec.family].reference in REFERENCES}
    assert built <= COUNTS.keys() <= MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_size_and_names(name):
    spec = MODELS[name]
    config = spec.config.to_dict()
    side = spec.preprocess.size
    assert default_size(config) == (side, side)
    shapes = expected_shapes(config, num_classes=spec.num_classes, image_size=(side, side))
    statistics = names.statistics(config)
    count = sum(math.prod(s) for n, s in shapes.items() if n not in statistics)
    assert count == COUNTS.get(name, recorded()[name].params)
    for layout in get(config).layouts:
        rows = table(config, layout)
        ours = [o for r in rows for o in r.ours]
        theirs = [r.theirs for r in rows]
        assert len(set(ours)) == len(ours)
        assert len(set(theirs)) == len(theirs)
        assert set(ours) == set(shapes)


@pytest.mark.parametrize("family", SURVEY)
def test_the_tables_without_a_head(family):
    name = next(iter(SURVEY[family].architectures))
    config = registered()[name].config.to_dict()
    shapes = expected_shapes(config, num_classes=0, image_size=default_size(config))
    rows = names.table(config, names.LINEN)
    assert set(shapes) == {o for r in rows for o in r.ours if not o.startswith("head")}

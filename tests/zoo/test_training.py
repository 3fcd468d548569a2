"""Two updates of every family: in bfloat16, over a mesh that splits the state four ways."""

import json
import math

import pytest
from processes import TESTS, finish, start

from vit_jax.families.registry import taking

FAMILIES = [name for name in taking("images") if name != "levit_conv"]


@pytest.fixture(scope="module")
def results():
    # One process for all: starting takes as long as a family. LeViT's two layouts are one model.
    worker = start([TESTS / "zoo_worker.py", *FAMILIES], devices=4)
    ((status, output, errors),) = finish(worker, limit=1200)
    assert status == 0, errors[-3000:]
    return {row["family"]: row for row in map(json.loads, output.splitlines())}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_updates(family, results):
    found = results[family]
    assert math.isfinite(found["loss"])
    assert found["finite"]
    assert found["float32"]
    assert found["laid_out"]
    assert found["share_split"] > 0.9
    # Biases of keys, and what else is added to every score of a query alike, have no gradient.
    assert found["share_moved"] > 0.8
    assert found["statistics_moved"] == 1

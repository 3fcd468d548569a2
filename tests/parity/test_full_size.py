"""The smallest model of each family at its full size against its reference: README's column."""

import json

import pytest

from vit_jax.families.generate import ERRORS
from vit_jax.families.registry import families
from vit_jax.families.sizes import recorded
from vit_jax.parity import compare
from vit_jax.parity.figures import FLOAT64_BAR
from vit_jax.parity.references import REFERENCES

FAMILIES = [name for name, family in families().items() if family.reference in REFERENCES]
README = json.loads(ERRORS.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_references(family):
    own = [n for n in families()[family].architectures if not n.startswith("testing")]
    name = min(own, key=lambda name: recorded()[name].params)
    found = compare(name, against=families()[family].reference, num_images=2)
    assert found.matched.logits.error <= FLOAT64_BAR
    assert found.verdict == "same"
    if family in README:  # rounding differs from machine to machine, by no power of ten
        assert found.matched.logits.error <= 10 * float(README[family])

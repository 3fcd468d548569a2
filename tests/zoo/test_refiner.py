"""What only Refiner has, beside its figures in test_official.py."""

import jax
import pytest

from vit_jax.errors import UserError
from vit_jax.models import get_model

SIZES = {"hidden_size": 24, "num_heads": 4, "mlp_dim": 72}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reused_layers": (0,)}, "block 0 cannot reuse maps: there is no block before it"),
        ({"refined_layers": (1,)}, "block 1 cannot reuse maps: it is to refine its own"),
        ({"num_heads": 5}, "num_heads=5 does not divide the width 24"),
    ],
)
def test_what_cannot_be(fields, message):
    model = get_model("refiner_vit_s", **{**SIZES, "num_layers": 2, **fields})
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)

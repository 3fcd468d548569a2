"""What only CPVT has, beside its figures in test_official.py: DeiT's blocks with the official
generator of positions.
"""

import jax

from vit_jax.models import get_model
from vit_jax.tree import arrays

SIZES = {"hidden_size": 24, "num_layers": 3, "num_heads": 3, "mlp_dim": 96}


def test_positions_after_as_many_blocks_as_asked_for():
    model = get_model("cpvt_ti_patch16_224", num_classes=2, **SIZES, position_layers=2)
    image = jax.ShapeDtypeStruct((1, 32, 64, 3), "float32")
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    generators = {name for name in arrays(variables["params"]) if name.startswith("positions_")}
    assert generators == {
        f"positions_{i}/conv/{leaf}" for i in (0, 1) for leaf in ("kernel", "bias")
    }

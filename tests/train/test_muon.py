"""Which parameters Muon takes as which matrices, what an update costs, and updates over a mesh."""

import jax
import numpy as np
import optax
import pytest
from optimizer_helpers import build_optimizer, orthogonal, random_tree
from recipes import flatten, unflatten

from vit_jax.configs import common
from vit_jax.devices.sharding import like_params, make_mesh, param_shardings
from vit_jax.errors import UserError
from vit_jax.families.registry import resolve
from vit_jax.families.shapes import vit_shapes
from vit_jax.train.muon import matrices, newton_schulz_flops
from vit_jax.train.optimizers import averaged

RULES = common.get_config().muon_rules
ATTENTION = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0"

# Name, shape, and the shape of the matrix [inputs, outputs]; None for what AdamW trains.
CASES = [
    (f"{ATTENTION}/query/kernel", (6, 2, 4), (6, 8)),
    (f"{ATTENTION}/out/kernel", (2, 4, 6), (8, 6)),
    (f"{ATTENTION}/query/bias", (2, 4), None),
    ("Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel", (6, 5), (6, 5)),
    ("Transformer/encoderblock_0/LayerNorm_0/scale", (6,), None),
    ("Transformer/posembed_input/pos_embedding", (1, 5, 6), None),
    ("stage_0/reduction/conv/kernel", (2, 2, 3, 5), (12, 5)),
    ("stage_0/depthwise/kernel", (3, 3, 1, 5), None),
    ("stage_0/embedding/conv/kernel", (2, 2, 3, 5), None),
    ("attention_pool/kernel", (6, 1), None),
    ("embedding/kernel", (2, 2, 3, 6), None),
    ("stem_1/conv/kernel", (3, 3, 3, 4), None),
    ("head_dist/kernel", (6, 3), None),
    ("cls", (1, 1, 6), None),
]


def test_each_matrix_is_orthogonalised_and_the_rest_is_adams():
    shapes = {name: shape for name, shape, _ in CASES}
    stacked = "Tower/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
    shapes[stacked] = (2, 6, 2, 4)
    params, grads = random_tree(shapes, 0), random_tree(shapes, 1)
    tx = build_optimizer("muon", lambda _: 1.0)
    updates, _ = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    updates, grads = flatten(updates), flatten(grads)

    def assert_orthogonalised(update, grad, matrix):
        want = -0.2 * np.sqrt(max(matrix)) * orthogonal(grad.reshape(matrix).astype(np.float64))
        np.testing.assert_allclose(update.reshape(matrix), want, rtol=1e-4, atol=1e-5)

    for name, _, matrix in CASES:
        if matrix:
            assert_orthogonalised(updates[name], grads[name], matrix)
        else:  # Adam's first direction
            np.testing.assert_allclose(updates[name], -np.sign(grads[name]), rtol=1e-4)
    for update, grad in zip(updates[stacked], grads[stacked], strict=True):
        assert_orthogonalised(update, grad, (6, 8))


def vit_b16() -> dict:
    return unflatten(
        {
            name: jax.ShapeDtypeStruct(shape, np.float32)
            for name, shape in vit_shapes(resolve("ViT-B_16").config, 1000, 196)
        }
    )


def test_an_update_of_vit_b16():
    """Muon has all but the embedding, the head and the vectors; 136 GFLOPs a block."""
    params = vit_b16()
    taken = flatten(jax.tree.map(lambda x: x is not None, matrices(params, RULES), is_leaf=is_leaf))
    names = {name for name, muon in taken.items() if muon}
    assert len(names) == 6 * 12
    assert all(name.startswith("Transformer/encoderblock_") for name in names)
    square = 6 * 768**3
    wide = 4 * 768**2 * 3072 + 2 * 768**3
    assert newton_schulz_flops(params, RULES) == 12 * 5 * (4 * square + 2 * wide)


def is_leaf(x) -> bool:
    return x is None or not isinstance(x, dict)


def test_layers_of_a_scanned_stack_cannot_be_told_apart():
    params = random_tree({"Transformer/encoderblock/Dense_0/kernel": (2, 4, 3)}, 0)
    rules = [(".*/encoderblock_1/.*", True), (".*", False)]
    tx = build_optimizer("muon", lambda _: 1.0, muon_rules=rules)
    with pytest.raises(UserError, match="tells the layers of Transformer/encoderblock/Dense_0"):
        jax.eval_shape(tx.init, params)


@pytest.mark.parametrize("optim", ["muon", "schedule_free_adamw"])
def test_an_update_over_a_mesh_is_that_of_one_device(optim):
    """The products of a matrix that is split along both sides, and the average of split arrays."""
    shapes = {
        f"{ATTENTION}/query/kernel": (64, 4, 16),
        f"{ATTENTION}/out/kernel": (4, 16, 64),
        "Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel": (128, 64),
        "head/kernel": (64, 6),
        "head/bias": (6,),
    }
    params, grads = random_tree(shapes, 0), random_tree(shapes, 1)
    tx = build_optimizer(optim, lambda _: 0.1, weight_decay=0.1)

    def two_steps(params, grads, state):
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    want, _ = one = jax.jit(two_steps)(params, grads, tx.init(params))
    mesh = make_mesh({"data": 1, "fsdp": 2, "model": 2})
    layout = param_shardings(params, mesh)
    state = jax.eval_shape(tx.init, params)
    layouts = (layout, layout, like_params(state, params, layout, mesh))
    split = jax.jit(two_steps, in_shardings=layouts, out_shardings=layouts[1:])
    got, _ = many = split(params, grads, tx.init(params))
    for tree, reference in ((got, want), (averaged(*many[::-1]), averaged(*one[::-1]))):
        for name, value in flatten(jax.device_get(reference)).items():
            spread = flatten(tree)[name]
            assert spread.sharding.is_equivalent_to(flatten(layout)[name], value.ndim)
            np.testing.assert_allclose(spread, value, rtol=0, atol=1e-5, err_msg=name)

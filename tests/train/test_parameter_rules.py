"""Rules by parameter name: coverage, first match, stacked blocks, layer-wise decay, freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import flatten, golden_json, unflatten

from vit_jax.checkpoint import names as layout_names
from vit_jax.checkpoint.stacked import stack_blocks, unstack_blocks
from vit_jax.errors import UserError
from vit_jax.families.registry import families
from vit_jax.train.parameter_rules import (
    layer_decay_rules,
    match_rules,
    per_parameter,
    stack_depths,
    stop_frozen,
)

SHAPES = {
    "cls": (1, 1, 4),
    "embedding/kernel": (2, 2, 3, 4),
    **{
        f"Transformer/encoderblock_{i}/{name}": shape
        for i in range(3)
        for name, shape in {"LayerNorm_0/scale": (4,), "Dense_0/kernel": (4, 8)}.items()
    },
    "Transformer/encoder_norm/scale": (4,),
    "head/kernel": (4, 2),
}


def tree(shapes=SHAPES) -> dict:
    return unflatten({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def test_the_first_rule_that_matches_the_whole_name_decides():
    rules = [("head/.*", 3.0), (".*/kernel", 2.0), ("cls|.*/scale", 1.0)]
    got = match_rules(rules, SHAPES, "lr_rules")
    assert got["head/kernel"] == 3.0
    assert got["embedding/kernel"] == 2.0
    assert got["Transformer/encoderblock_1/Dense_0/kernel"] == 2.0
    assert got["cls"] == got["Transformer/encoder_norm/scale"] == 1.0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([(".*/kernel", 1.0)], r"lr_rules: no rule matches .*encoderblock_0/LayerNorm_0.*'cls'"),
        (
            [("kernel", 1.0), (".*", 0.0)],
            "no parameter matches 'kernel'; there are 'Transformer/enc",
        ),
        ([(r".*/encoderblock_3/.*", 1.0), (".*", 0.0)], r"no parameter matches .*encoderblock_3"),
        ([(".*", 0.0), (".*/kernel", 1.0)], r"'\.\*/kernel' decides nothing"),
        ([("(", 1.0)], "is not a pair"),
        ([("head/.*",)], "is not a pair"),
        ([(".*", "1.0")], "has '1.0'; expected a number"),
        ([], "no rule matches 'Transformer/encoder_norm/scale'"),
    ],
    ids=str,
)
def test_bad_rules_are_named(rules, message):
    with pytest.raises(UserError, match=message):
        per_parameter(rules, tree(), "lr_rules")


def test_stacked_blocks_get_a_value_a_layer():
    rules = [(r".*/encoderblock_1/.*/kernel", 0.5), (".*/scale", 3.0), (".*", 2.0)]
    plain = flatten(per_parameter(rules, tree(), "f"))
    stacked = per_parameter(rules, stack_blocks(tree()), "f")
    block = stacked["Transformer"]["encoderblock"]
    np.testing.assert_array_equal(block["Dense_0"]["kernel"], np.reshape([2, 0.5, 2], (3, 1, 1)))
    assert block["LayerNorm_0"]["scale"] == 3.0  # one number where the layers agree
    full = jax.tree.map(
        lambda value, x: np.broadcast_to(value, x.shape), stacked, stack_blocks(tree())
    )
    for name, value in flatten(unstack_blocks(full)).items():
        assert (value == plain[name]).all(), name


def test_stack_depths():
    assert set(jax.tree.leaves(stack_depths(tree()))) == {0}
    depths = flatten(stack_depths(stack_blocks(tree())))
    assert {depth for name, depth in depths.items() if "encoderblock" in name} == {3}
    assert {depth for name, depth in depths.items() if "encoderblock" not in name} == {0}


def test_layer_decay():
    rules = layer_decay_rules(0.5, tree())
    got = flatten(per_parameter(rules, tree(), "f"))
    assert got["cls"] == got["embedding/kernel"] == 0.5**4
    for i, multiplier in enumerate((0.5**3, 0.5**2, 0.5)):
        assert got[f"Transformer/encoderblock_{i}/Dense_0/kernel"] == multiplier
    assert got["Transformer/encoder_norm/scale"] == got["head/kernel"] == 1.0
    stacked = stack_blocks(tree())
    assert layer_decay_rules(0.5, stacked) == rules
    block = per_parameter(rules, stacked, "f")["Transformer"]["encoderblock"]
    np.testing.assert_array_equal(block["LayerNorm_0"]["scale"][:, 0], [0.125, 0.25, 0.5])


MODELS = golden_json("shapes.json")


@pytest.mark.parametrize("model", MODELS)
def test_layer_decay_covers_every_model(model):
    shapes = MODELS[model]["params"]
    params = unflatten(
        {name: jax.ShapeDtypeStruct(tuple(shape), np.float32) for name, shape in shapes.items()}
    )
    got = flatten(per_parameter(layer_decay_rules(0.9, params), params, "f"))
    depth = max(int(part.split("_")[1]) for n in shapes for part in n.split("/") if "lock_" in part)
    assert set(got.values()) == {0.9**i for i in range(depth + 3)}
    first = [n for n in got if got[n] == min(got.values())]
    assert {"embedding/kernel", "stem/kernel"} & set(first)
    assert got["head/kernel"] == 1.0


FLAT = (
    "cct",
    "ceit",
    "cpvt",
    "deepvit",
    "deit",
    "diversepatch",
    "lvvit",
    "refiner",
    "t2t",
    "vit_avg",
)


@pytest.mark.parametrize("family", FLAT)
def test_layer_decay_covers_flat_families(family):
    """Every parameter has one rule of its own, the deepest the embedding's."""
    config = {"family": family, **next(iter(families()[family].architectures.values())).config}
    parameters = [r.ours for r in layout_names.table(config, "linen") if not r.statistic]
    every = [name for (name,) in parameters]
    blocks = {int(n.split("encoderblock_")[1].split("/")[0]) for n in every if "encoderblock_" in n}
    shapes = {name: jax.ShapeDtypeStruct((2, 2), np.float32) for name in every}
    values = match_rules(layer_decay_rules(0.9, unflatten(shapes)), every, "layer_decay")
    assert set(values.values()) == {0.9**i for i in range(len(blocks) + 2)}
    assert values["posembed_input/pos_embedding" if family != "cpvt" else "cls"] == min(
        values.values()
    )


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_layer_decay_out_of_range(decay):
    with pytest.raises(UserError, match=rf"config.layer_decay must be in \(0, 1\], got {decay}"):
        layer_decay_rules(decay, tree())


def test_layer_decay_needs_blocks():
    with pytest.raises(UserError, match="needs blocks; the model has 'embedding/kernel'"):
        layer_decay_rules(0.9, tree({"embedding/kernel": (3, 4)}))


@pytest.mark.parametrize("scan", [False, True])
def test_no_gradient_flows_through_what_is_frozen(scan):
    rules = [(r"cls|.*/encoderblock_1/.*", True), (".*", False)]
    params = stack_blocks(tree()) if scan else tree()

    def loss(params):
        leaves = jax.tree.leaves(stop_frozen(params, rules))
        return sum(jnp.sum((x + 1.0) ** 2) for x in leaves)

    grads = jax.jit(jax.grad(loss))(params)
    for name, grad in flatten(unstack_blocks(grads)).items():
        frozen = name == "cls" or "encoderblock_1" in name
        np.testing.assert_array_equal(grad, 0.0 if frozen else 2.0, err_msg=name)

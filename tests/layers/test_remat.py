"""Rematerialised and scanned blocks with every attention: the same gradients, and what is kept."""

import functools

import jax
import numpy as np
import pytest
from kernels import equations
from recipes import flatten, random_images, random_params

from vit_jax.checkpoint.stacked import stack_blocks, unstack_blocks
from vit_jax.errors import UserError
from vit_jax.layers.attention.choice import attending
from vit_jax.layers.attention.packed import LANES
from vit_jax.models import from_config

DEPTH, WIDTH, HIDDEN, HEADS = 2, 32, 64, 2
IMAGES = random_images((3, 32, 40, 3))
TOKENS = 3 * (4 * 5)  # patches of 8 pixels
# Numbers kept for a token, as `vit_jax/layers/remat.py` has it; lanes of the kernel are padded,
# and it keeps the softmax's sums, 8 rows of them.
SIZES = {
    "xla": {"qkv": 3 * WIDTH, "attention": WIDTH, "mlp": HIDDEN},
    "packed": {"qkv": 3 * LANES, "attention": LANES + 8, "mlp": HIDDEN},
}
# Products that need not be made again.
PRODUCTS = {"xla": {"qkv": 3, "mlp": 1}, "packed": {"qkv": 1, "mlp": 1}}
NAMED = ("qkv", "attention", "mlp", "qkv,attention", "qkv,attention,mlp")


def build(**fields):
    transformer = {"num_layers": DEPTH, "num_heads": HEADS, "mlp_dim": HIDDEN, **fields}
    config = {"model_name": "tiny", "patches": {"size": (8, 8)}, "hidden_size": WIDTH}
    return from_config({**config, "classifier": "gap", "transformer": transformer}, num_classes=5)


@functools.cache
def weights():
    params = jax.eval_shape(functools.partial(build().init, train=False), jax.random.key(0), IMAGES)
    return random_params({k: x.shape for k, x in flatten(params["params"]).items()}, scale=0.2)


def gradient(attend, **fields):
    """The loss and its gradient as a function, and the weights that it takes."""
    model = build(**fields)

    def loss(params):
        return (model.apply({"params": params}, IMAGES, train=False) ** 2).sum()

    params = stack_blocks(weights()) if fields.get("scan") else weights()
    return jax.jit(attending(attend)(jax.value_and_grad(loss))), params


@functools.cache
def compiled(attend, scan, remat):
    function, params = gradient(attend, scan=scan, remat=remat)
    return function.lower(params).compile(), params


def loss_and_gradient(attend, scan, remat):
    function, params = compiled(attend, scan, remat)
    loss, grads = jax.device_get(function(params))
    return loss, flatten(unstack_blocks(grads) if scan else grads)


@pytest.mark.parametrize(
    ("attend", "scan", "remat"),
    [
        ("xla", False, "attention"),
        ("xla", True, "qkv,attention,mlp"),
        ("packed", False, True),
        ("packed", False, "attention"),
        ("packed", True, "qkv,attention,mlp"),
    ],
)
def test_gradients_are_the_plain_ones(attend, scan, remat):
    loss, grads = loss_and_gradient(attend, scan, remat)
    wanted_loss, wanted = loss_and_gradient("xla", False, False)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    assert grads.keys() == wanted.keys()
    for name, want in wanted.items():
        # A key bias cannot change the softmax: its true gradient is zero, what is left is rounding.
        scale = 1.0 if name.endswith("key/bias") else np.abs(want).max()
        np.testing.assert_allclose(grads[name], want, rtol=0, atol=1e-5 * scale, err_msg=name)


@functools.cache
def cost(attend, remat):
    """Numbers that the loop over the blocks keeps for the one back, and products of both."""
    function, params = gradient(attend, scan=True, remat=remat)
    program = list(equations(jax.make_jaxpr(function)(params)))
    forward = next(e for e in program if e.primitive.name == "scan")
    results = [x.aval for x in forward.outvars]
    kept = sum(x.size for x in results if x.shape[0] == DEPTH)  # the others have 3 images
    return kept / DEPTH, sum(e.primitive.name == "dot_general" for e in program)


@pytest.mark.parametrize("attend", ["xla", "packed"])
@pytest.mark.parametrize("remat", NAMED)
def test_named_tensors_are_kept_and_not_made_again(attend, remat):
    names = remat.split(",")
    least, most_products = cost(attend, True)
    kept, products = cost(attend, remat)
    assert kept - least == TOKENS * sum(SIZES[attend][name] for name in names)
    assert most_products - products == sum(PRODUCTS[attend].get(name, 0) for name in names)
    assert kept < cost(attend, False)[0]


@pytest.mark.parametrize(("remat", "runs"), [(True, 3), ("attention", 2)])
def test_the_kernel_runs_again_unless_its_results_are_kept(remat, runs):
    """Interpreted, each of its runs is a loop in the compiled program."""
    program, _ = compiled("packed", False, remat)
    assert program.as_text().count(" while(") == runs * DEPTH


@pytest.mark.parametrize("remat", ["qvk", "qkv,attentoin", "qkv attention"])
def test_unknown_names(remat):
    with pytest.raises(UserError) as error:
        jax.eval_shape(
            functools.partial(build(remat=remat).init, train=False), jax.random.key(0), IMAGES
        )
    assert "Expected True, False, or what is kept: qkv, attention, mlp" in str(error.value)

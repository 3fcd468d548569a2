"""What cuDNN is asked, as no GPU is here: JAX's plain operations answer in its place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.layers.attention import MultiHeadDotProductAttention, attend
from vit_jax.layers.attention.choice import attending
from vit_jax.layers.attention.cudnn import cudnn_attention

# In 16-bit types `jax.nn.dot_product_attention` promotes.
pytestmark = pytest.mark.promotes

answer = jax.nn.dot_product_attention
on_gpu = functools.partial(attending, platform="gpu")


@pytest.fixture
def asked(monkeypatch):
    """What cuDNN is asked, one entry a call: (shape of q, shape of k, scale)."""
    calls = []

    def cudnn(q, k, v, *, implementation, scale, key_value_seq_lengths):
        assert implementation == "cudnn"
        # As JAX does, which refuses to train with others.
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0
        calls.append((q.shape, k.shape, scale))
        return answer(q, k, v, scale=scale, key_value_seq_lengths=key_value_seq_lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    return calls


def inputs(queries=17, keys=17, heads=2, width=16, values=16, dtype=jnp.bfloat16):
    rng = np.random.default_rng(0)
    shapes = ((2, queries, heads, width), (2, keys, heads, width), (2, keys, heads, values))
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def error(ours, theirs):
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return np.abs(ours - theirs).max() / theirs.std()


@functools.partial(jax.jit, static_argnums=0)
def results(function, q, k, v):
    y, pull = jax.vjp(function, q, k, v)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.parametrize(
    ("lengths", "scale"),
    [((17, 17), None), ((16, 16), 0.3), ((1, 17), 0.3), ((17, 16), None)],
    ids=str,
)
def test_lengths_become_even_and_nothing_else_changes(asked, lengths, scale):
    qkv = inputs(*lengths, dtype=jnp.float32)
    ours = results(functools.partial(cudnn_attention, scale=scale), *qkv)
    theirs = results(functools.partial(answer, scale=scale), *qkv)
    even = [length + length % 2 for length in lengths]
    assert asked == [((2, even[0], 2, 16), (2, even[1], 2, 16), scale)]
    assert max(error(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-5


def test_a_key_too_many_would_be_seen():
    q, k, v = inputs(16, 17, dtype=jnp.float32)
    k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (k, v))
    assert error(answer(q, k, v), answer(q, k[:, :17], v[:, :17])) > 1e-2


@pytest.mark.parametrize("name", ["auto", "cudnn"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_asked_for_what_attend_gets(asked, name, scale):
    qkv = inputs(16, 18)
    got = jax.jit(on_gpu(name)(functools.partial(attend, scale=scale)))(*qkv)
    assert asked == [((2, 16, 2, 16), (2, 18, 2, 16), scale)]
    wide = [x.astype(jnp.float32) for x in qkv]
    plain = jax.jit(on_gpu("xla")(functools.partial(attend, scale=scale)))(*wide)
    assert error(got, plain) < 0.03  # bfloat16
    assert len(asked) == 1
    assert got.dtype == jnp.bfloat16


CANNOT = {
    "plain": ({}, None),
    "float16": ({"dtype": jnp.float16}, None),
    "float32": ({"dtype": jnp.float32}, "float32, not bfloat16 or float16"),
    "128": ({"width": 128, "values": 128}, None),
    "136": ({"width": 136, "values": 136}, "heads are 136 wide, not a multiple of 8 up to 128"),
    "12": ({"width": 12, "values": 12}, "heads are 12 wide"),
    "values": ({"values": 32}, "values are 32 wide and keys 16"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_it_cannot_do_is_computed_plainly_unless_it_was_asked_for(asked, what):
    fields, reason = CANNOT[what]
    jax.eval_shape(on_gpu("auto")(attend), *inputs(**fields))
    assert bool(asked) == (reason is None)
    if reason is not None:
        with pytest.raises(UserError, match=f"attend='cudnn' cannot .*: {reason}"):
            jax.eval_shape(on_gpu("cudnn")(attend), *inputs(**fields))


# Attentions for which cuDNN is not asked, whatever their size is.
OTHER_KINDS = {
    "windows": lambda q, k, v: attend(*(x[:, None] for x in (q, k, v))),
    "a bias": lambda q, k, v: attend(q, k, v, bias=jnp.zeros((1, 1, 17, 17))),
    "weights": lambda q, k, v: attend(q, k, v, on_weights=lambda weights: weights),
    "scores": lambda q, k, v: attend(q, k, v, on_scores=lambda scores: scores),
}


@pytest.mark.parametrize("what", OTHER_KINDS)
def test_other_kinds_are_an_error_only_where_there_is_nothing_else(asked, what):
    other = OTHER_KINDS[what]
    jax.eval_shape(on_gpu("auto")(other), *inputs())
    with pytest.raises(UserError, match=f"no attention of this model .*{what}"):
        jax.eval_shape(on_gpu("cudnn")(other), *inputs())
    assert not asked

    def both(q, k, v):
        return other(q, k, v), attend(q, k, v)

    jax.eval_shape(on_gpu("cudnn")(both), *inputs())
    assert len(asked) == 1


def test_mixed_types_are_computed_plainly(asked):
    q, k, v = inputs()
    jax.eval_shape(on_gpu("auto")(attend), q, k, v.astype(jnp.float32))
    assert not asked


@pytest.mark.parametrize(
    ("fields", "call", "taken"),
    [
        ({}, {}, True),
        ({"dropout_rate": 0.5}, {}, True),
        ({"dropout_rate": 0.5}, {"train": True}, False),
        ({}, {"mutable": ["intermediates"]}, True),
        ({}, {"bias": np.zeros((1, 1, 5, 5), np.float32)}, False),
    ],
    ids=["plain", "no dropout", "dropout", "looking", "bias"],
)
def test_layer(asked, fields, call, taken):
    layer = MultiHeadDotProductAttention(num_heads=2, dtype=jnp.bfloat16, **fields)
    x = jnp.ones((1, 5, 16))

    def run(x):
        variables = layer.init(jax.random.key(0), x, train=False)
        assert not asked
        rngs = {"dropout": jax.random.key(1)}
        layer.apply({"params": variables["params"]}, x, rngs=rngs, **{"train": False, **call})

    jax.eval_shape(on_gpu("auto")(run), x)
    assert bool(asked) == taken
    if not taken:
        with pytest.raises(UserError, match=r"dropout of its weights|its scores have a bias"):
            jax.eval_shape(on_gpu("cudnn")(run), x)


def test_only_gpus_have_it_and_they_have_no_kernel_for_tpus():
    with pytest.raises(UserError, match="needs NVIDIA GPUs"), attending("cudnn"):
        pass
    with pytest.raises(UserError, match="kernel for TPUs"), on_gpu("packed"):
        pass

"""The paper's ablation of positions against a direct NumPy statement of every kind and place."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from vit_jax.checkpoint import names, to_torch
from vit_jax.errors import UserError
from vit_jax.models import from_config, get_model
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.subject import random_params
from vit_jax.parity.traces import trace_ours
from vit_jax.tree import arrays, unflatten

ROWS, COLUMNS, WIDTH, HEADS, LAYERS = 2, 3, 12, 3, 2
SIZE = (4 * ROWS, 4 * COLUMNS)
FORMS = [("none", "input")] + [
    (kind, place)
    for kind in ("learned_1d", "learned_2d", "relative")
    for place in ("input", "layers", "shared")
]


def config_of(position: str, where: str, classifier: str = "token") -> dict[str, Any]:
    return {
        "patches": {"size": (4, 4)},
        "hidden_size": WIDTH,
        "classifier": classifier,
        "representation_size": None,
        "encoder": "positions",
        "transformer": {
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "mlp_dim": 16,
            "position": position,
            "where": where,
        },
    }


@functools.cache
def weights(position: str, where: str, classifier: str = "token") -> dict[str, np.ndarray]:
    shapes = names.expected_shapes(
        config_of(position, where, classifier), num_classes=5, image_size=SIZE
    )
    return {key: 3 * x for key, x in random_params(shapes, seed=0).items()}


IMAGES = np.random.default_rng(1).standard_normal((2, *SIZE, 3))


def ours(position: str, where: str, classifier: str = "token") -> np.ndarray:
    model = from_config(config_of(position, where, classifier), num_classes=5)
    params = unflatten(weights(position, where, classifier))
    return trace_ours(model, {"params": params}, IMAGES, [], np.float64).logits


# --- the same in NumPy ----------------------------------------------------------------------------


def norm(x, w, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"]


def dense(x, w, name):
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def place_of(token: int, first: int) -> tuple[int, int] | None:
    """(row, column) of a token's patch; None for a class token."""
    return None if token < first else divmod(token - first, COLUMNS)


def table(w, name: str, kind: str, length: int) -> np.ndarray:
    """The positions [T, D] of all tokens."""
    if kind == "learned_1d":
        return w[f"{name}/pos_embedding"][0]
    first, found = length - ROWS * COLUMNS, []
    for token in range(length):
        if (place := place_of(token, first)) is None:
            found.append(w[f"{name}/others"][0, token])
        else:
            row, column = place
            found.append(np.concatenate([w[f"{name}/columns"][column], w[f"{name}/rows"][row]]))
    return np.stack(found)


def offsets(q, w, name: str) -> np.ndarray:
    """What is added to the scores [N, heads, Q, K], of queries [N, Q, heads, d]."""
    length, first = q.shape[1], q.shape[1] - ROWS * COLUMNS
    bias = np.zeros((len(q), HEADS, length, length))
    for i in range(first, length):
        for j in range(first, length):
            (row, column), (r, c) = place_of(i, first), place_of(j, first)
            vector = w[f"{name}/row_offsets"][r - row + ROWS - 1]
            vector = vector + w[f"{name}/column_offsets"][c - column + COLUMNS - 1]
            bias[:, :, i, j] = q[:, i] @ vector / np.sqrt(WIDTH // HEADS)
    return bias


def encoder(x, w, kind: str, where: str):
    length = x.shape[1]
    added = kind in ("learned_1d", "learned_2d")
    for i in range(LAYERS):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        if added and (where == "shared" or (where == "input" and i == 0)):
            x = x + table(w, "Transformer/posembed_input", kind, length)
        elif added and where == "layers":
            x = x + table(w, f"{block}/posembed", kind, length)
        y = norm(x, w, f"{block}/LayerNorm_0")
        q, k, v = (
            np.einsum("ntc,chd->nthd", y, w[f"{attention}/{part}/kernel"])
            + w[f"{attention}/{part}/bias"]
            for part in ("query", "key", "value")
        )
        scores = np.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(WIDTH // HEADS)
        if kind == "relative" and (where != "input" or i == 0):
            here = attention if where != "shared" else "Transformer/relative_positions"
            scores = scores + offsets(q, w, here)
        y = np.einsum("nhqk,nkhd->nqhd", softmax(scores), v)
        x = x + np.einsum("nqhd,hdc->nqc", y, w[f"{attention}/out/kernel"])
        x = x + w[f"{attention}/out/bias"]
        y = gelu(dense(norm(x, w, f"{block}/LayerNorm_1"), w, f"{block}/MlpBlock_0/Dense_0"))
        x = x + dense(y, w, f"{block}/MlpBlock_0/Dense_1")
    return norm(x, w, "Transformer/encoder_norm")


def stated(kind: str, where: str, classifier: str = "token") -> np.ndarray:
    w = {key: x.astype(np.float64) for key, x in weights(kind, where, classifier).items()}
    patches = IMAGES.reshape(2, ROWS, 4, COLUMNS, 4, 3).swapaxes(2, 3)
    x = patches.reshape(2, ROWS * COLUMNS, -1) @ w["embedding/kernel"].reshape(-1, WIDTH)
    x = x + w["embedding/bias"]
    if classifier == "token":
        x = np.concatenate([np.broadcast_to(w["cls"], (2, 1, WIDTH)), x], axis=1)
    x = encoder(x, w, kind, where)
    return dense(x[:, 0] if classifier == "token" else x.mean(1), w, "head")


@pytest.mark.parametrize(("kind", "where"), FORMS)
def test_it_is_what_is_stated(kind, where):
    assert relative_error(ours(kind, where), stated(kind, where)) <= FLOAT64_BAR


def test_without_a_class_token():
    for kind in ("learned_2d", "relative"):
        logits = ours(kind, "input", "gap")
        assert relative_error(logits, stated(kind, "input", "gap")) <= FLOAT64_BAR


def test_positions_of_the_input_are_the_originals_tensors():
    """A table that layers share is the same tensor."""
    forms = {form: set(weights(*form)) for form in FORMS}
    assert forms["learned_1d", "input"] == forms["learned_1d", "shared"]
    plain = {**config_of("learned_1d", "input"), "encoder": "plain"}
    plain["transformer"] = {
        key: x for key, x in plain["transformer"].items() if key not in ("position", "where")
    }
    shapes = names.expected_shapes(plain, num_classes=5, image_size=SIZE)
    assert set(shapes) == forms["learned_1d", "input"]


def test_what_cannot_be_is_an_error():
    with pytest.raises(UserError, match=r"unknown encoder 'position'\. Did you mean 'positions'"):
        get_model("ViT-Ti_16", encoder="position")
    config = config_of("relativ", "input")
    model = from_config(config, num_classes=5)
    with pytest.raises(UserError, match=r"unknown position 'relativ'\. Did you mean 'relative'"):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), IMAGES)
    params = unflatten(weights("relative", "shared"))
    for layout in ("timm", "hf", "official", "big_vision"):
        with pytest.raises(UserError, match="only our own names hold"):
            to_torch({"params": params}, config_of("relative", "shared"), layout)
    linen = to_torch({"params": params}, config_of("relative", "shared"), "linen")
    assert linen.keys() == arrays(params).keys()

"""CvT in training; the rest is in test_battery.py, the official figures in test_official.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from zoo_cases import Case, config_of

from vit_jax.checkpoint import from_torch
from vit_jax.errors import UserError
from vit_jax.models import from_config
from vit_jax.models.cvt import ConvAttention
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.tree import arrays

SIZES = {"hidden_sizes": (8, 16, 24), "num_heads": (1, 2, 3)}


def test_training_normalises_by_the_batch():
    """Logits and running means are PyTorch's; its running variance is N / (N - 1) of ours."""
    this = Case("cvt_13", (60, 72), depths=(1, 2, 3), **SIZES)
    module = this.reference().double().train()
    pixels = torch.from_numpy(this.images).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = module(pixels).logits.numpy()
    state = {k: x.numpy() for k, x in module.state_dict().items()}
    running = arrays(from_torch(state, this.config, "hf")["batch_stats"])
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: np.asarray(x, np.float64), this.variables)
        train = functools.partial(this.model.apply, train=True, mutable=["batch_stats"])
        ours, changed = jax.jit(train)(variables, this.images)
        ours, changed = jax.device_get((ours, changed))
    assert relative_error(ours, theirs) <= FLOAT64_BAR
    for name, x in arrays(changed["batch_stats"]).items():
        if name.endswith("mean"):
            np.testing.assert_allclose(x, running[name], rtol=1e-6, atol=1e-7)
    first = "stage_0/encoderblock_0/MultiHeadDotProductAttention_0/query_conv/norm/var"
    count = 2 * 15 * 18  # images and cells of the first map
    kept = 0.9 * this.flat[first]
    batch = (arrays(changed["batch_stats"])[first] - kept) * count / (count - 1)
    np.testing.assert_allclose(kept + batch, running[first], rtol=1e-6)


def test_tokens_before_the_map_bypass_the_convolutions():
    """Where convolutions give nothing all cells ask the same, the tokens before them do not."""
    x = jax.random.normal(jax.random.key(0), (1, 2 + 12, 8))
    layer = ConvAttention(2, grid=(3, 4))
    variables = layer.init(jax.random.key(1), x, train=False)
    still = {
        name: jax.tree.map(jnp.zeros_like, x) if name.endswith("_conv") else x
        for name, x in variables["params"].items()
    }
    y = layer.apply({**variables, "params": still}, x, train=False)
    np.testing.assert_allclose(y[:, 2:], np.broadcast_to(y[:, 2:3], y[:, 2:].shape), atol=1e-6)
    assert np.abs(y[:, 0] - y[:, 1]).max() > 1e-3


def test_unknown_activation():
    model = from_config(config_of("cvt_13", activation="quick_gellu"), num_classes=7)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    with pytest.raises(UserError, match="Did you mean 'quick_gelu'"):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


def test_hugging_face_needs_deep_stages():
    with pytest.raises(UserError, match=r"fewer than 1, 2, 3 blocks a stage; got \(1, 1, 1\)"):
        Case("cvt_13", (64, 64), depths=(1, 1, 1), **SIZES).reference()

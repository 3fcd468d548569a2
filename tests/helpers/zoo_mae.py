"""A tiny masked autoencoder with the weights of recorded figures, and what is computed of it."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from zoo_golden import FOLDER, Golden

from vit_jax.checkpoint import from_torch
from vit_jax.layers.masking import is_kept
from vit_jax.models import from_config
from vit_jax.train.masked_autoencoder import KEPT, MaskedAutoencoding, targets
from vit_jax.tree import arrays

CONFIG: dict[str, Any] = {
    "family": "mae",
    "patch_size": 8,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "mlp_dim": 128,
    "decoder": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 64},
}
PATCH = (8, 8)


@functools.cache
def golden(name: str) -> Golden:
    return Golden(name)


@functools.cache
def gradient_norms(name: str) -> dict[str, tuple[float, float]]:
    """Of each tensor by the official name: the sum of its gradient, and the L2 norm."""
    return json.loads((FOLDER / f"{name}.json").read_text())["gradients"]


def variables(name: str) -> dict[str, Any]:
    """The recorded weights under our names, in float64."""
    params = from_torch(golden(name).weights, CONFIG, "official")["params"]
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


@functools.cache
def computed(name: str) -> dict[str, Any]:
    """Everything that is recorded of a case, as ours has it, in float64."""
    return compute(variables(name), golden(name), norm_pixels=name.endswith("normpix"))


def compute(params: Mapping[str, Any], case: Golden, *, norm_pixels: bool) -> dict[str, Any]:
    """'latent', 'pred', 'mask', 'loss', 'target' and 'gradients' by our names, in float64."""
    model = from_config(CONFIG)
    task = MaskedAutoencoding(PATCH, norm_pixels=norm_pixels)

    def loss(params, images, noise):
        batch, asked = task.masked(noise, {"image": images})
        pred, state = model.apply(
            {"params": params},
            images,
            **asked,
            train=True,
            capture_intermediates=lambda module, _: module.name == "encoder",
            mutable=["intermediates"],
        )
        (latent,) = state["intermediates"]["encoder"]["__call__"]
        target = targets(images, PATCH, norm_pixels=norm_pixels)
        found = {"latent": latent, "pred": pred, "target": target}
        found["mask"] = 1 - is_kept(batch[KEPT], pred.shape[1])
        return task.loss((pred,), batch).mean(), found

    with jax.enable_x64(True):
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, found), gradients = step(params, case.images, case.figures["noise"])
        return jax.device_get({**found, "loss": value, "gradients": arrays(gradients)})

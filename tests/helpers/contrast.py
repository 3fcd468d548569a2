"""Unit vectors whose contrastive loss is recorded, and that loss with its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.train.contrastive import LOSSES

BIAS = -2.71


def unit(z: np.ndarray) -> np.ndarray:
    return z / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-8)


def vectors(count: int = 8, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Those of the recorded figures, for 8 pairs of width 16."""
    rng = np.random.default_rng(11)
    zimg = unit(rng.standard_normal((count, width)))
    return zimg, unit(rng.standard_normal((count, width)) + 0.6 * zimg)


def total(name: str, rows: int, zimg, ztxt, t_param, b):
    """The loss of a batch, and the means of all figures."""
    figures = LOSSES[name](zimg, ztxt, {"t": jnp.exp(t_param), "b": b}, rows)
    means = {key: x.mean() for key, x in figures.items()}
    return means["loss"], means


def loss_and_grad(name: str, rows: int):
    return jax.value_and_grad(functools.partial(total, name, rows), (0, 1, 2, 3), has_aux=True)


def learned(dtype) -> tuple[np.ndarray, np.ndarray]:
    return np.full(1, np.log(10), dtype), np.full(1, BIAS, dtype)


def spread(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has, as one over the devices of all of them."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def over_all_devices(name: str, dtype: str, rows: int, count: int) -> list[np.ndarray]:
    """Loss, figures and gradients of pairs that lie split over the devices of all processes."""
    from vit_jax.devices.sharding import make_mesh, replicated, split_batch

    mesh = make_mesh()
    split, full = split_batch(mesh), replicated(mesh)
    with jax.enable_x64(dtype == "float64"):
        given = [x.astype(dtype) for x in (*vectors(count), *learned(dtype))]
        laid = map(spread, given, (split, split, full, full))
        found = jax.jit(loss_and_grad(name, rows), out_shardings=full)(*laid)
    return [np.asarray(x) for x in jax.tree.leaves(found)]

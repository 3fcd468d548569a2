"""A model of the survey and its reference on the same random weights and statistics."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch

from vit_jax.checkpoint import edits, from_torch, names, to_torch
from vit_jax.families.registry import get, resolve
from vit_jax.families.rules import Imported
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.stages import STAGE_MAPS
from vit_jax.models import from_config
from vit_jax.parity import references, subject
from vit_jax.parity.figures import relative_error
from vit_jax.parity.traces import trace_ours, trace_torch
from vit_jax.tree import arrays
from vit_jax.variables import collections, named

NUM_CLASSES = 7


def config_of(name: str, **overrides: Any) -> dict[str, Any]:
    """A registered model's config with some fields changed, mappings by entry."""
    config = resolve(name).config.to_dict()
    for field, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(config.get(field), dict)
        config[field] = config[field] | dict(value) if both else value
    return config


def change_encoder(monkeypatch: Any, module: Any, **factories: Any) -> None:
    """Gives the encoder that a models module builds other factories, for negative controls."""

    def changed(model: Any, *cls: type, **own: Any) -> Any:
        return encoder_of(model, *cls, **{**own, **factories})

    monkeypatch.setattr(module, "encoder_of", changed)


def resizing(config, shapes, old, new, method) -> dict[str, Any]:
    """What changes, by name, when weights for images of one size are fitted to another."""
    edit = edits.resized(config, shapes, old, new, method)
    return {} if edit is None else dict(edit.changed)


class Case:
    """One model at one image size, two images.

    Attributes:
      config, size, layout: What is compared, and whose names its weights get.
      flat: Every parameter and statistic, random, by our names.
      differentiated: Whether gradients are computed together with the logits.
    """

    def __init__(
        self,
        name: str,
        size: tuple[int, int] | None = None,
        *,
        num_classes: int = NUM_CLASSES,
        layout: str | None = None,
        differentiated: bool = False,
        **overrides: Any,
    ):
        self.config = config_of(name, **overrides)
        this = subject.prepare(self.config, None, size, num_classes, seed=0)
        self.size, self.flat, self.num_classes = this.image_size, this.params, num_classes
        self.layout = layout or get(self.config).reference
        self.model = from_config(self.config, num_classes=num_classes)
        self.variables = collections(self.flat, names.statistics(self.config))
        self.images = np.random.default_rng(1).uniform(-1, 1, (2, *self.size, 3))
        self.differentiated = differentiated

    @functools.cached_property
    def state(self) -> dict[str, np.ndarray]:
        """The weights under the reference's names."""
        return to_torch(self.variables, self.config, self.layout)

    def reference(self, *, matched: bool = True) -> torch.nn.Module:
        """The reference with these weights, loaded strictly."""
        library = references.get(self.layout)
        sizes = {"num_classes": self.num_classes, "image_size": self.size}
        return library.build(self.config, self.state, matched=matched, **sizes)

    @functools.cached_property
    def module(self) -> torch.nn.Module:
        """The reference in float64, which nobody changes."""
        return self.reference().double()

    @property
    def weighting(self) -> np.ndarray:
        """What the logits are multiplied by for the sum that is differentiated."""
        return np.random.default_rng(2).standard_normal((2, self.num_classes))

    @functools.cached_property
    def computed(self) -> tuple[np.ndarray, list[np.ndarray], dict[str, np.ndarray]]:
        """Logits, the stages' maps, and gradients if there are any: one program, in float64."""

        def forward(params, rest, images):
            variables = {"params": params, **rest}
            logits, state = self.model.apply(variables, images, train=False, mutable=[STAGE_MAPS])
            maps = state.get(STAGE_MAPS, {})
            maps = [maps[f"stage_map_{i}"][0] for i in range(len(maps))]
            return (logits * self.weighting).sum() if self.differentiated else 0.0, (logits, maps)

        def with_gradients(*args):
            if not self.differentiated:
                return forward(*args)[1], {}
            (_, outputs), gradients = jax.value_and_grad(forward, has_aux=True)(*args)
            return outputs, gradients

        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: np.asarray(x, np.float64), self.variables)
            params = wide.pop("params")
            result = jax.jit(with_gradients)(params, wide, self.images)
            (logits, maps), gradients = jax.device_get(result)
        return logits, maps, arrays(gradients)

    @property
    def ours64(self) -> np.ndarray:
        return self.computed[0]

    def ours(self, model: Any) -> np.ndarray:
        """Output of a model, in float64."""
        return trace_ours(model, self.variables, self.images, [], np.float64).logits

    def ours_from(self, **weights: np.ndarray) -> np.ndarray:
        """Output of our model with some weights replaced, by name, in float64."""
        variables = collections({**self.flat, **weights}, names.statistics(self.config))
        return trace_ours(self.model, variables, self.images, [], np.float64).logits

    def ours_with(self, **fields: Any) -> np.ndarray:
        """Output of our model with other constructor fields, for negative controls."""
        return self.ours(self.model.clone(**fields))

    @functools.cached_property
    def theirs64(self) -> np.ndarray:
        return self.theirs(self.module)

    def theirs(self, module: torch.nn.Module | None = None) -> np.ndarray:
        """Output of the reference, or of another module in its place, in float64."""
        if module is None:
            return self.theirs64
        logits_of = references.get(self.layout).logits_of
        return trace_torch(module, self.images, [], np.float64, logits_of).logits

    def error(self, module: torch.nn.Module | None = None) -> float:
        """How far our logits are from the reference's, both in float64."""
        return relative_error(self.ours64, self.theirs(module))

    def assert_round_trip(self) -> None:
        """Theirs to ours to theirs, and ours to theirs to ours, bit for bit."""
        back = from_torch(self.state, self.config, self.layout)
        flat = arrays(named(back))
        assert flat.keys() == self.flat.keys()
        for name, x in flat.items():
            np.testing.assert_array_equal(x, self.flat[name], err_msg=name)
            assert x.dtype == np.float32
        again = to_torch(back, self.config, self.layout)
        assert again.keys() == self.state.keys()
        for name, x in again.items():
            np.testing.assert_array_equal(x, self.state[name], err_msg=name)

    def assert_same_gradients(self, bar: float = 1e-6) -> None:
        """d(sum of weighted logits) / d(each parameter) against torch's autograd, float64.

        Relative to each tensor's largest value; a gradient that is truly zero (of a key's bias)
        is noise on both sides, below 1e-12 of the largest of all.
        """
        ours, theirs = self.computed[2], self._their_gradients()
        assert ours.keys() == theirs.keys()
        floor = 1e-12 * max(np.abs(g).max() for g in theirs.values())
        for name, wanted in theirs.items():
            error = np.abs(ours[name] - wanted).max()
            assert error <= max(bar * np.abs(wanted).max(), floor), (name, error)

    def _their_gradients(self) -> dict[str, np.ndarray]:
        module = copy.deepcopy(self.module).eval().requires_grad_(True)
        pixels = torch.from_numpy(self.images).permute(0, 3, 1, 2)
        logits = references.get(self.layout).logits_of(module(pixels))
        (logits * torch.from_numpy(self.weighting)).sum().backward()
        gradients = {
            name: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
            for name, p in module.named_parameters()
        }
        # What a library adds and we do not have, such as the bias of CLIP's head, is no parameter.
        kept = gradients.keys() - names.layout_of(self.config, self.layout).zeros.keys()
        rows = [r for r in names.table(self.config, self.layout) if r.theirs in kept]
        found = Imported(rows, {name: gradients[name] for name in kept})
        return {name: np.array(x) for name, x in found.items()}

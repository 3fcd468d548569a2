"""A model over all devices of this process, that gives several things of each image at once."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.errors import UserError, suggest
from vit_jax.inference import ImageReader
from vit_jax.patches import mapped, stacked
from vit_jax.tree import arrays

if TYPE_CHECKING:
    from vit_jax.checkpoint.facts import Model
    from vit_jax.loaded import Loaded

KINDS = ("features", "tokens", "text")
TEXT = "text"
_PANGRAM = "The quick brown fox jumps over the lazy dog, 0123456789."
DTYPES = ("float32", "float16")


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises UserError for none, for an unknown kind, and for one that is named twice."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(
                f"--what: unknown {kind!r}.{suggest(kind, KINDS)} Known: {', '.join(KINDS)}"
            )
    if not kinds or len(set(kinds)) < len(kinds):
        raise UserError(f"--what must name one or more of {', '.join(KINDS)}, each once")
    if TEXT in kinds and len(kinds) > 1:
        raise UserError("--what text stands alone: its data are texts, and those of others images")


@dataclasses.dataclass(frozen=True)
class Embedder(ImageReader):
    """An `ImageReader` that gives a dict of arrays, a row for each image in each.

    Every device computes its own part of a batch, with all parameters.

    Attributes:
      loaded: The model.
      kinds: What it gives, of `KINDS`.
      dtype: What its outputs are rounded to; it computes in float32.
    """

    loaded: "Loaded"
    kinds: tuple[str, ...] = ("features",)
    dtype: str = "float32"

    @property
    def known(self) -> "Model":
        return self.loaded.weights.model

    @functools.cached_property
    def devices(self) -> int:
        """How many devices share a batch."""
        import jax

        return jax.local_device_count()

    def dispatch(self, images: Any) -> Any:
        """The arrays for a batch of images, maybe still computed when this returns.

        There are as many rows as the devices share evenly: those behind the N-th mean nothing.
        """
        import jax

        images = mapped(self._filled, images)
        program, variables, sharding = self._program
        return program(variables, jax.device_put(images, sharding))

    def _filled(self, x: np.ndarray) -> np.ndarray:
        """With zeros behind its rows, so that the devices share them evenly."""
        filling = np.zeros((-len(x) % self.devices, *x.shape[1:]), x.dtype)
        return np.concatenate([x, filling]) if len(filling) else x

    @functools.cached_property
    def shapes(self) -> dict[str, list[int]]:
        """The shape of each kind of vectors of one image.

        Raises:
          UserError: for a kind that this model does not give.
        """
        import jax

        if "tokens" in self.kinds and self.known.flexible is not None:
            raise UserError(
                f"--what: {self.known.name} has as many tokens as an image has patches, which is "
                "another number for each image, and all rows have one shape: take features"
            )
        inputs = stacked([self._example] * self.devices)
        found = jax.eval_shape(self._forward, self.loaded.variables, inputs)
        return {kind: list(found[kind].shape[1:]) for kind in self.kinds}

    @property
    def _example(self) -> Any:
        """Some prepared image."""
        shape = (*self.preprocessing.height_width, self.preprocessing.channels)
        return self.preprocess(np.zeros(shape, np.uint8))

    def _forward(self, variables: Any, images: Any) -> Any:
        return {
            kind: self.loaded.forward(kind)(variables, images).astype(self.dtype)
            for kind in self.kinds
        }

    @functools.cached_property
    def _program(self) -> tuple[Any, Any, Any]:
        """The compiled model, its variables on every device, and how a batch lies on them."""
        import jax

        from vit_jax.devices import sharding
        from vit_jax.layers.attention.choice import attending

        mesh = sharding.make_mesh(devices=jax.local_devices())
        whole, split = sharding.replicated(mesh), sharding.split_batch(mesh)
        program = jax.jit(
            attending(None, mesh)(self._forward), in_shardings=(whole, split), out_shardings=split
        )
        return program, jax.device_put(self.loaded.variables, whole), split

    def description(self) -> dict[str, Any]:
        """What tells this model from others; see `Manifest.model`."""
        known = self.loaded.weights.model
        return {
            "name": known.name,
            "weights": digest(self.loaded.variables, known.config),
            "preprocess": self._prepared_as(),
        }

    def _prepared_as(self) -> dict[str, Any]:
        flexible = self.known.flexible
        patches = {} if flexible is None else {"patches": list(flexible)}
        return self.preprocessing.to_dict() | patches


@dataclasses.dataclass(frozen=True)
class TextEmbedder(Embedder):
    """An `Embedder` of texts: a record's text stands where the image of others does."""

    kinds: tuple[str, ...] = (TEXT,)

    def decode(self, record: Mapping[str, Any]) -> np.ndarray:
        """The tokens of a record's text, int32 [length]."""
        return self.loaded.tokenize([record["image"]])[0]

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """The tokens as they are."""
        return pixels

    @property
    def _example(self) -> np.ndarray:
        return self.decode({"image": ""})

    def _prepared_as(self) -> dict[str, Any]:
        text = self.loaded.weights.model.text
        # The vocabulary may be another file of the same name: what it makes of a text tells it.
        tokens = self.loaded.tokenize([_PANGRAM])[0].tolist()
        return {**({} if text is None else text.to_dict()), "pangram": str(tokens)}


def digest(variables: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """A digest of all parameters and of the constructor's fields."""
    found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, x in sorted(arrays(variables).items()):
        x = np.ascontiguousarray(x)
        found.update(f"{name} {x.dtype} {x.shape}".encode())
        found.update(x.data if x.ndim else x.tobytes())
    return found.hexdigest()[:32]

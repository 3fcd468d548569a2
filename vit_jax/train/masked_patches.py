"""Masked patch prediction: which colours had the patches that the model does not see?

Dosovitskiy et al. 2021 (arXiv:2010.11929), appendix B.1.2. Half of the embedded patches are
corrupted; for each of them the model predicts the mean colour, 3 bits a channel. What the paper
leaves open is chosen as follows: exactly the rate's share of each image's patches is corrupted; the
other patch that one in ten is replaced by is another one of the same image; and a class is
64 R + 8 G + B, or with `packing='bgr'` R + 8 G + 64 B, which only reorders the logits.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError, chosen
from vit_jax.layers.masking import KEPT, MASKED, SWAPPED, UNSELECTED, Corruption
from vit_jax.layers.patch import split_patches
from vit_jax.layers.precision import widened

LEVELS = 8  # of a channel: 3 bits
CELLS = 4  # rows and columns of the reduced patch of 'mean_colour_4x4'
MOST_CHANNELS = 4  # Five would have 32,768 classes.
TARGETS = dict.fromkeys(("mean_colour", "mean_colour_4x4", "pixels"))
PACKINGS = dict.fromkeys(("rgb", "bgr"))


def draw_corruption(
    key: jax.Array, images: int, patches: int, *, rate: float, masked: float, swapped: float
) -> Corruption:
    """Draws what happens to the patches of some images.

    Args:
      key: The key from which everything is drawn.
      images, patches: N and T, the shape of the result.
      rate: The share of the patches that are selected; at least one patch of each image is.
      masked, swapped: The shares of the selected patches that become the mask token and that
        become another patch; the others stay as they are.
    """
    select_key, kind_key, donor_key = jax.random.split(key, 3)
    shape = (images, patches)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(select_key, shape), axis=1), axis=1)
    selected = rank < max(1, round(rate * patches))
    kind = kinds(selected, jax.random.uniform(kind_key, shape), masked, swapped)
    # From one patch to another one: any number of steps but none.
    steps = jax.random.randint(donor_key, shape, 1, max(patches, 2))
    return Corruption(kind, (jnp.arange(patches)[None] + steps) % patches)


def kinds(selected: jax.Array, u: jax.Array, masked: float, swapped: float) -> jax.Array:
    """What happens to each patch [N, T], from numbers `u` [N, T] that are uniform in [0, 1)."""
    kind = jnp.where(u < masked, MASKED, jnp.where(u < masked + swapped, SWAPPED, KEPT))
    return jnp.where(selected, kind, UNSELECTED)


def colour_classes(colours: jax.Array, packing: str = "rgb") -> jax.Array:
    """Colours [..., C] in [0, 1] to one of 8^C classes, [...].

    A channel has 8 levels, min(⌊8 x⌋, 7), and 'rgb' counts the first channel in the highest place.
    """
    levels = jnp.clip(jnp.floor(LEVELS * colours), 0, LEVELS - 1).astype(jnp.int32)
    places = [LEVELS**i for i in range(colours.shape[-1])]
    places = places[::-1] if packing == "rgb" else places
    return levels @ jnp.array(places, jnp.int32)


def patch_pixels(images: jax.Array, patch: tuple[int, int]) -> jax.Array:
    """Images [N, H, W, C] to their patches, row by row, [N, T, height, width, C]."""
    x = split_patches(images, patch)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def cell_colours(pixels: jax.Array, cells: int) -> jax.Array:
    """Patches [N, T, h, w, C] to mean colours of `cells`² cells of each, [N, T, cells², C]."""
    n, t, height, width, channels = pixels.shape
    pixels = pixels.reshape(n, t, cells, height // cells, cells, width // cells, channels)
    return pixels.mean(axis=(3, 5)).reshape(n, t, cells**2, channels)


def cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """-log softmax(logits)[class]: logits [..., K] and class numbers [...] to [...]."""
    logits = jax.nn.log_softmax(widened(logits))
    return -jnp.take_along_axis(logits, classes[..., None], axis=-1)[..., 0]


def mean_of_selected(values: jax.Array, selected: jax.Array) -> jax.Array:
    """[N, T] to [N], whose mean over the batch is the mean over its selected patches.

    Where all images have equally many selected patches, it is the mean over those of each image.
    """
    chosen_ones = selected.astype(values.dtype)
    return (values * chosen_ones).sum(axis=1) / chosen_ones.sum(axis=1).mean()


@dataclasses.dataclass(frozen=True)
class MaskedPatches:
    """The objective of a run, over images that are normalised as `mean` and `std` say.

    Attributes:
      patch: (height, width) of a patch in pixels.
      mean, std: By channel, in which images in [0, 1] were normalised.
      rate, masked, swapped: As in `draw_corruption`.
      target: 'mean_colour', the class of a patch; 'mean_colour_4x4', the classes of its 4 × 4
        cells; 'pixels', the values of its pixels in [0, 1], by mean squared error.
      packing: As in `colour_classes`.

    Raises:
      UserError: for an unknown target or packing, shares above 1 together, more channels than 4, or
        patches that have no 4 × 4 equal cells.
    """

    patch: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    rate: float = 0.5
    masked: float = 0.8
    swapped: float = 0.1
    target: str = "mean_colour"
    packing: str = "rgb"

    def __post_init__(self):
        chosen(self.target, TARGETS, "masking.target")
        chosen(self.packing, PACKINGS, "masking.packing")
        if self.masked + self.swapped > 1 + 1e-9:
            raise UserError(
                f"masking.masked={self.masked} and masking.swapped={self.swapped} are shares of "
                "the same patches; expected at most 1 together"
            )
        if self.target != "pixels" and len(self.mean) > MOST_CHANNELS:
            raise UserError(
                f"masking.target={self.target!r} has 8 levels for each channel, and is for at most "
                f"{MOST_CHANNELS} channels; got {len(self.mean)}. Use 'pixels'"
            )
        if self.target == "mean_colour_4x4" and any(side % CELLS for side in self.patch):
            height, width = self.patch
            raise UserError(
                f"masking.target='mean_colour_4x4' needs patches whose sides are multiples of "
                f"{CELLS} pixels; this model's are {height}×{width}"
            )

    @property
    def outputs(self) -> int:
        """How many numbers the model predicts for a patch."""
        if self.target == "pixels":
            return math.prod(self.patch) * len(self.mean)
        return self._cells**2 * LEVELS ** len(self.mean)

    @property
    def _cells(self) -> int:
        return CELLS if self.target == "mean_colour_4x4" else 1

    def draw(
        self, key: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """The batch with 'selected' [N, T], and the corruption that the model is called with."""
        n, height, width = batch["image"].shape[:3]
        patches = (height // self.patch[0]) * (width // self.patch[1])
        shares = {"rate": self.rate, "masked": self.masked, "swapped": self.swapped}
        corruption = draw_corruption(key, n, patches, **shares)
        return {**batch, "selected": corruption.selected}, {"corruption": corruption}

    def loss(self, heads: Sequence[jax.Array], batch: Mapping[str, jax.Array]) -> jax.Array:
        """The loss of each image [N], over its selected patches.

        Args:
          heads: Predictions for the tokens [N, …, `outputs`]; what stands before the patches is
            not looked at.
          batch: 'image', normalised, and 'selected'.
        """
        predictions, pixels = self._compared(heads[0], batch["image"])
        if self.target == "pixels":
            losses = jnp.square(predictions - pixels).mean(axis=(2, 3, 4))
        else:
            losses = cross_entropy(predictions, self._classes(pixels)).mean(axis=2)
        return mean_of_selected(losses, batch["selected"])

    def judge(
        self, forward: Callable[..., jax.Array], batch: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """What is counted of a batch, and the loss of each image.

        All images are corrupted alike, and always in the same way. What counts are the classes of
        mean colours of selected patches, or of their cells; predicted pixels have such a class too.

        Args:
          forward: Images and keyword arguments of the model to what it returns.
          batch: 'image', and 'mask' [N], 0 for padding.
        """
        batch, asked = self._drawn_once(batch)
        output = forward(batch["image"], **asked)
        predictions, pixels = self._compared(output, batch["image"])
        classes = self._classes(pixels)
        if self.target == "pixels":
            guesses = self._classes(predictions)
        else:
            guesses = predictions.argmax(axis=-1)
        counts = (batch["selected"] & (batch["mask"] > 0)[:, None])[..., None]
        counts = jnp.broadcast_to(counts, classes.shape)
        figures = {"counted": counts.sum(), "correct": (counts & (guesses == classes)).sum()}
        return figures, self.loss((output,), batch)

    def _drawn_once(self, batch: Mapping[str, jax.Array]) -> tuple[dict[str, jax.Array], Any]:
        """As `draw`, but one image's corruption for all, whatever the size of the batch is."""
        one = {**batch, "image": batch["image"][:1]}
        drawn, asked = self.draw(jax.random.key(0), one)
        n = len(batch["image"])
        same = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (n, *x.shape[1:])), (drawn["selected"], asked)
        )
        return {**batch, "selected": same[0]}, same[1]

    def _classes(self, pixels: jax.Array) -> jax.Array:
        """Patches [N, T, h, w, C] to the classes of their cells, [N, T, cells²]."""
        return colour_classes(cell_colours(pixels, self._cells), self.packing)

    def _compared(self, output: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Predictions for the patches, and the patches' pixels [N, T, h, w, C] in [0, 1].

        The predictions are [N, T, h, w, C] too, or logits [N, T, cells², K].
        """
        mean, std = (jnp.asarray(x, images.dtype)[None, None, None] for x in (self.mean, self.std))
        pixels = patch_pixels(images * std + mean, self.patch)
        n, t = pixels.shape[:2]
        predictions = widened(output).reshape(n, -1, output.shape[-1])[:, -t:]
        if self.target == "pixels":
            return predictions.reshape(pixels.shape), pixels
        return predictions.reshape(n, t, self._cells**2, -1), pixels

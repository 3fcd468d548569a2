"""Losses that keep the patches of a deep model apart, instead of all being smoothed to one.

Gong et al. 2021, "Vision Transformers with Patch Diversification" (arXiv:2104.12753): the
patch-wise cosine loss, the contrastive loss and the mixing loss, as the paper writes them and
as ChengyueGongR/PatchVisionTransformer computes them. The two differ, and the released code has no
cosine loss: its value is a constant 0 there.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import chosen
from vit_jax.evaluate.similarity import mean_similarity
from vit_jax.layers.precision import widened
from vit_jax.train.losses import smooth_labels, softmax_cross_entropy

FORMS = dict.fromkeys(("released", "paper"))
_TINY = 1e-8  # The released code adds it to a probability before the logarithm.
_NEAR = 7  # Rows and columns of a patch's neighbourhood in the released contrastive loss.
# A patch alone is an average over a region of this weight. The model divides by the sum of the
# weights and 1e-4, which is lost beside it in float32.
_ALONE = 1e6


def contrastive_loss(early: jax.Array, late: jax.Array) -> jax.Array:
    """The mean over i of -log(e^a / (e^a + e^b)), a = e_i · h_i, b = e_i · mean over j ≠ i of h_j.

    Patches of an early layer e and of the last one h, both [N, T, D], to [N]. No
    gradient goes back through the early ones.
    """
    early, late = jax.lax.stop_gradient(widened(early)), widened(late)
    own = (early * late).sum(axis=-1)
    return jax.nn.softplus((early * _mean_of_others(late)).sum(axis=-1) - own).mean(axis=1)


def released_contrastive_loss(
    early: jax.Array, late: jax.Array, grid: tuple[int, int]
) -> jax.Array:
    """As `contrastive_loss`, with the mean of a patch's neighbours as a third choice.

    The neighbours are the other patches of a square of 7 × 7; their sum is divided by 48 also at
    the border, where there are fewer.

    Args:
      early: Patches before the blocks, without positions, [N, T, D].
      late: Patches after the last norm, [N, T, D].
      grid: Rows and columns of the patches.
    """
    early, late = jax.lax.stop_gradient(widened(early)), widened(late)
    around: Any = [(_NEAR // 2, _NEAR // 2)] * 2
    near = nn.avg_pool(late.reshape(len(late), *grid, -1), (_NEAR, _NEAR), padding=around)
    near = near.reshape(late.shape)
    count = _NEAR**2
    near = count / (count - 1) * (near - late / count)
    choices = [(early * x).sum(axis=-1) for x in (late, _mean_of_others(late), near)]
    return -_log_softmax(jnp.stack(choices, axis=-1))[..., 0].mean(axis=1)


def mixing_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of all patches: logits and labels [N, T, K] to [N]."""
    return softmax_cross_entropy(logits, labels).mean(axis=1)


def released_mixing_loss(logits: jax.Array, labels: jax.Array, shares: jax.Array) -> jax.Array:
    """The sum over regions of share · KL(label ‖ prediction): [N].

    Args:
      logits: For the average patch of each region, [N, R, K].
      labels: Probabilities [N, R, K].
      shares: The share of the patches that a region has, [R].
    """
    entropy = jax.scipy.special.xlogy(labels, labels) - labels * _log_softmax(widened(logits))
    return entropy.sum(axis=-1) @ shares


def released_class_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-Σ labels · log(softmax(logits) + 1e-8): [N, K] to [N]."""
    return -(labels * _log_softmax(widened(logits))).sum(axis=-1)


def _log_softmax(x: jax.Array) -> jax.Array:
    """Bounded by log 1e-8, so that neither the value nor the gradient grows beyond limits."""
    return jnp.log(jax.nn.softmax(x, axis=-1) + _TINY)


def _mean_of_others(x: jax.Array) -> jax.Array:
    return (x.sum(axis=1, keepdims=True) - x) / max(x.shape[1] - 1, 1)


def draw_box(key: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """1 inside and 0 outside a random box of patches, [rows, columns], float32.

    The released rule: the area is uniform, the height uniform between 1 and what the area allows,
    the width what is left; a box that is too wide becomes as wide as the grid.
    """
    rows, columns = grid
    area_key, height_key, top_key, left_key = jax.random.split(key, 4)
    area = (rows * columns * jax.random.uniform(area_key)).astype(jnp.int32)
    most = jnp.maximum(1, jnp.minimum(rows, area) - 1)
    height = jax.random.randint(height_key, (), 1, most + 1)
    width = area // height
    height, width = (
        jnp.where(width > columns, area // columns, height),
        jnp.minimum(width, columns),
    )
    top = jax.random.randint(top_key, (), 0, rows - height + 1)
    left = jax.random.randint(left_key, (), 0, columns - width + 1)
    down, right = jnp.arange(rows)[:, None] - top, jnp.arange(columns)[None] - left
    inside = (down >= 0) & (down < height) & (right >= 0) & (right < width)
    return inside.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class DiversePatches:
    """The objective of a run: the classes of the images, and patches that stay apart.

    Attributes:
      patch: (height, width) of a patch in pixels.
      form: 'released' or 'paper': whose contrastive, mixing and class losses are meant.
      cosine, contrastive, mixing: The weight of each loss beside that of the class; 0 leaves it
        out. With mixing, every image gets a box of patches of another one.
      label_smoothing: As `config.label_smoothing`.
    """

    patch: tuple[int, int]
    form: str = "released"
    cosine: float = 0.0
    contrastive: float = 1.0
    mixing: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        chosen(self.form, FORMS, "diversity.form")

    @property
    def compares(self) -> bool:
        """Whether patches are compared, which the model must show."""
        return self.cosine > 0 or self.contrastive > 0

    def draw(
        self, key: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """The mixed batch, and the regions whose patches the model's second head is asked about.

        Every image keeps its patches in a box, and gets the others from the image before it in the
        batch (see `vit_jax.train.mixing` for why that one). 'label' becomes the mixture of both,
        and 'region_labels' [N, R, K] and 'shares' [R] belong to the regions.
        """
        grid = self._grid(batch["image"])
        own = smooth_labels(batch["label"], self.label_smoothing)
        if not self.mixing:
            return {**batch, "label": own}, {}
        other, box = jnp.roll(own, 1, axis=0), draw_box(key, grid)
        pixels = jnp.kron(box, jnp.ones(self.patch))
        height, width = batch["image"].shape[1:3]
        edge = (height - pixels.shape[0], width - pixels.shape[1])
        pixels = jnp.pad(pixels, [(0, edge[0]), (0, edge[1])], mode="edge")[None, :, :, None]
        image = jnp.where(pixels > 0, batch["image"], jnp.roll(batch["image"], 1, axis=0))
        share = box.mean()
        mixed = {**batch, "image": image, "label": share * own + (1 - share) * other}
        if self.form == "released":
            regions = jnp.stack([box, 1 - box])
            labels = jnp.stack([own, other], axis=1)
        else:
            patches = box.reshape(1, -1, 1)
            regions = _ALONE * jnp.eye(box.size).reshape(-1, *grid)
            labels = patches * own[:, None] + (1 - patches) * other[:, None]
        drawn = {"region_labels": labels, "shares": regions.mean(axis=(1, 2))}
        return {**mixed, **drawn}, {"regions": regions}

    def loss(self, heads: Sequence[jax.Array], batch: Mapping[str, jax.Array]) -> jax.Array:
        """The loss of each image [N].

        Args:
          heads: Logits of the class, [N, K], and with mixing those of the regions, [N, R, K].
          batch: What `draw` made, with the patches 'embedded' and 'final' [N, T, D].
        """
        released = self.form == "released"
        of_class = released_class_loss if released else softmax_cross_entropy
        total = of_class(heads[0], batch["label"])
        if self.cosine:
            total += self.cosine * mean_similarity(batch["final"])
        if self.contrastive:
            early, late = batch["embedded"], batch["final"]
            if released:
                found = released_contrastive_loss(early, late, self._grid(batch["image"]))
            else:
                found = contrastive_loss(early, late)
            total += self.contrastive * found
        if self.mixing:
            logits, labels = heads[1], batch["region_labels"]
            if released:
                found = released_mixing_loss(logits, labels, batch["shares"])
            else:
                found = mixing_loss(logits, labels)
            total += self.mixing * found
        return total

    def _grid(self, images: jax.Array) -> tuple[int, int]:
        return images.shape[1] // self.patch[0], images.shape[2] // self.patch[1]

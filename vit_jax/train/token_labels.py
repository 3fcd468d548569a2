"""Token labelling: a label for every patch beside that of the image.

Jiang et al. 2021, "All Tokens Matter: Token Labeling for Training Better Vision Transformers"
(LV-ViT, arXiv:2104.10858). A trained network has written its scores of an image as a map. Each crop
of the image takes its labels from the same place in the map (RoIAlign, He et al. 2017,
arXiv:1703.06870, section 3), as ReLabel does for one label a crop (Yun et al. 2021,
arXiv:2101.05022). The numbers are those of the released code, `tlt`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax.errors import UserError
from vit_jax.families import registry
from vit_jax.families.preprocess import sides
from vit_jax.input_pipeline.label_maps import MAP, WINDOW
from vit_jax.layers.precision import widened
from vit_jax.train.losses import smooth_labels, softmax_cross_entropy
from vit_jax.train.mixing import IMAGE_LABEL, MIX, TOKEN_LABELS, random_box

Batch = Mapping[str, jax.Array]
Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class TokenLabels:
    """What `config.token_labels` asks of the training step.

    Attributes:
      grid: (rows, columns) of the patches.
      class_weight, dense_weight: Weights of the two losses, see `token_label_loss`.
      ground_truth: As in `token_label_loss`.
      mixtoken_alpha: α of the distribution of MixToken's box; 0 turns MixToken off.
      smoothing: ε, as in `map_labels`.
      dense: Whether the model has a head for the patches.
    """

    grid: Grid
    class_weight: float = 1.0
    dense_weight: float = 1.0
    ground_truth: bool = False
    mixtoken_alpha: float = 0.0
    smoothing: float = 0.0
    dense: bool = True

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch with the labels of the crops in the place of their maps.

        'label' [N, K] is smoothed. Where the batch has maps, float32 [N, 2, M, H, W], and the
        windows of the crops in them [N, 4], it gets 'label_image' [N, K] and 'label_tokens'
        [N, rows · columns, K] instead.
        """
        made = {name: x for name, x in batch.items() if name not in (MAP, WINDOW)}
        if MAP in batch:
            scores = dense_scores(batch[MAP], batch["label"].shape[-1])
            made[IMAGE_LABEL] = map_labels(scores, batch[WINDOW], (1, 1), self.smoothing)[:, 0]
            made[TOKEN_LABELS] = map_labels(scores, batch[WINDOW], self.grid, self.smoothing)
        return {**made, "label": smooth_labels(batch["label"], self.smoothing)}

    def box(self, key: jax.Array) -> jax.Array:
        """The patches that MixToken takes from the other image, bool [rows, columns]."""
        return random_box(key, self.mixtoken_alpha, 1, *self.grid)[0]

    def objective(self, heads: Sequence[jax.Array], batch: Batch) -> jax.Array:
        """The loss of each example [N], of the logits of each head and a batch as `targets` has it.

        Raises:
          UserError: for a model of several heads that has none for the patches.
        """
        if len(heads) > 1 and not self.dense:
            raise UserError(
                f"config.token_labels needs a model with a head for the patches, or with one head; "
                f"this one has {len(heads)}, which are for other ends"
            )
        return token_label_loss(
            heads[0],
            heads[1] if self.dense else None,
            batch["label"],
            batch.get(IMAGE_LABEL),
            batch.get(TOKEN_LABELS),
            mix=batch.get(MIX),
            class_weight=self.class_weight,
            dense_weight=self.dense_weight,
            ground_truth=self.ground_truth,
        )


def token_label_loss(
    logits: jax.Array,
    token_logits: jax.Array | None,
    label: jax.Array,
    image_label: jax.Array | None = None,
    token_labels: jax.Array | None = None,
    *,
    mix: jax.Array | None = None,
    class_weight: float = 1.0,
    dense_weight: float = 1.0,
    ground_truth: bool = False,
) -> jax.Array:
    """w_c CE(logits, t) + w_d mean over the patches of CE(token_logits, t_p) (equation 4): [N].

    CE(x, t) is -Σ t · log softmax(x). Where MixToken has exchanged a share 1 - λ of the patches, t
    becomes λ t + (1 - λ) t', t' being the label of the image of the same place in the batch read
    backwards (equation 7).

    Args:
      logits: The class token's, [N, K].
      token_logits: The patches', [N, T, K]; None leaves the second term out.
      label: The true label, [N, K].
      image_label: t, the map's label of the whole crop, [N, K]; None takes `label`.
      token_labels: t_p, the map's label of each patch, [N, T, K]; None takes `label` for each.
      mix: The exchanged patches, bool [rows, columns]; None for none.
      class_weight: w_c.
      dense_weight: w_d; 1, as in the released code. The paper has 0.5.
      ground_truth: Whether the true label is mixed into t: a half of it where both have the same
        likeliest class, and a tenth otherwise. This is what the released code computes; its
        comment says that the true label counts for more where the map is wrong, which would be
        the reverse.
    """
    target = label if image_label is None else image_label
    if ground_truth and image_label is not None:
        same = jnp.argmax(label, -1) == jnp.argmax(image_label, -1)
        share = jnp.where(same, 0.5, 0.9)[:, None].astype(image_label.dtype)
        target = share * image_label + (1 - share) * label
    if mix is not None:
        kept = 1 - jnp.mean(mix, dtype=target.dtype)
        target = kept * target + (1 - kept) * target[::-1]
    loss = class_weight * softmax_cross_entropy(logits, target)
    if token_logits is None:
        return loss
    each = label[:, None] if token_labels is None else token_labels
    return loss + dense_weight * softmax_cross_entropy(token_logits, each).mean(axis=-1)


def dense_scores(maps: jax.Array, num_classes: int) -> jax.Array:
    """The scores of all classes, [N, H, W, num_classes], of the best classes' [N, 2, M, H, W].

    `maps[:, 0]` are scores and `maps[:, 1]` the numbers of their classes. A class that is not
    among the M best of a place has the score 0 there, as in the released code.
    """
    scores, classes = (maps[:, i, ..., None] for i in (0, 1))
    known = jnp.arange(num_classes, dtype=maps.dtype).reshape((1,) * 4 + (-1,))
    return jnp.where(classes == known, scores, 0).sum(axis=1)


def map_labels(
    scores: jax.Array, windows: jax.Array, grid: Grid, smoothing: float = 0.0
) -> jax.Array:
    """The labels of the cells of crops, row by row: [N, rows · columns, K].

    They are softmax(RoIAlign(scores)), and smoothed by ε: (1 - ε + ε / K) t + ε / K. As in the
    released code, a smoothed label adds up to 1 + ε / K.

    Args:
      scores: [N, H, W, K].
      windows: Left, top, width and height of the crops, as shares of the map's sides, [N, 4].
      grid: (rows, columns).
      smoothing: ε.
    """
    cells = roi_align(widened(scores), windows, grid)
    labels = jax.nn.softmax(cells.reshape(cells.shape[0], -1, cells.shape[-1]))
    off = smoothing / scores.shape[-1]
    return labels * (1 - smoothing + off) + off


def roi_align(maps: jax.Array, windows: jax.Array, grid: Grid) -> jax.Array:
    """RoIAlign of one window a map: [N, H, W, K] to [N, rows, columns, K].

    This is torchvision's with `aligned=False` and its own number of samples: a window that is cut
    into g cells along a side of s pixels of the map has ⌈s / g⌉ bilinear samples a cell, of which a
    cell is the mean. A side counts as one pixel at least. A place up to one pixel outside of the
    map has the value of the border, and 0 further out. Windows begin at `share · W - 0.5`; the
    released code takes the map's width for both axes, and maps are square; here each axis has its
    own side.

    Args:
      maps: [N, H, W, K].
      windows: Left, top, width and height, as shares of the map's sides, [N, 4].
      grid: (rows, columns).
    """
    left, top, width, height = windows.astype(maps.dtype).T
    rows = _cell_weights(top, height, maps.shape[1], grid[0])
    columns = _cell_weights(left, width, maps.shape[2], grid[1])
    return jnp.einsum(
        "nrh,ncw,nhwk->nrck", rows, columns, maps, precision=jax.lax.Precision.HIGHEST
    )


def _cell_weights(start: jax.Array, share: jax.Array, size: int, cells: int) -> jax.Array:
    """The weight of each pixel along one axis in each cell, [N, cells, size].

    Sampling is a product of the axes, and so is the mean over a cell's samples.
    """
    low, high = start * size - 0.5, (start + share) * size - 0.5
    side = jnp.maximum(high - low, 1)
    count = jnp.ceil(side / cells)
    # A window lies within the map, so that only a rounding error can ask for one sample more.
    sample = jnp.arange(-(-size // cells) + 1, dtype=side.dtype)[None, None]
    place = jnp.arange(cells, dtype=side.dtype)[None, :, None] + (sample + 0.5) / _wide(count)
    x = _wide(low) + place * _wide(side / cells)
    used = (sample < _wide(count)) & (x >= -1) & (x <= size)
    x = jnp.clip(x, 0, size - 1)[..., None]
    pixels = jnp.arange(size, dtype=side.dtype).reshape(1, 1, 1, -1)
    weights = jnp.where(used[..., None], jnp.maximum(1 - jnp.abs(x - pixels), 0), 0)
    return weights.sum(axis=2) / _wide(count)


def _wide(x: jax.Array) -> jax.Array:
    return x[:, None, None]


def of_config(config: ConfigDict) -> TokenLabels | None:
    """What a complete config asks for; None for a run without token labelling.

    Raises:
      UserError: for a model without the outputs that this needs, and for settings that exclude it.
    """
    given = config.token_labels
    if not given.on:
        if given.maps or given.mixtoken_alpha:
            raise UserError(
                "config.token_labels has maps or a mixtoken_alpha, which nothing uses: set "
                "--config.token_labels.on=True"
            )
        return None
    family = registry.get(config.model)
    _require_fit(config, family.labels_tokens)
    grid = (1, 1)
    if family.labels_tokens and family.stride is not None:
        (height, width), (down, right) = sides(config.pp.crop), family.stride(config.model)
        grid = (height // down, width // right)
    return TokenLabels(
        grid,
        given.class_weight,
        given.dense_weight,
        given.ground_truth,
        given.mixtoken_alpha,
        config.label_smoothing,
        dense=family.labels_tokens,
    )


def _require_fit(config: ConfigDict, dense: bool) -> None:
    given = config.token_labels
    if not dense and (given.dense_weight or given.mixtoken_alpha):
        able = sorted(name for name, x in registry.families().items() if x.labels_tokens)
        raise UserError(
            f"config.token_labels: models of the family {registry.family_of(config.model)!r} have "
            f"no head for the patches, as those of {', '.join(able)} have. With dense_weight=0 and "
            "mixtoken_alpha=0 the image's label alone comes from the maps"
        )
    if not given.class_weight + given.dense_weight:
        raise UserError("config.token_labels: class_weight and dense_weight are both 0")
    if given.ground_truth and not given.maps:
        raise UserError(
            "config.token_labels.ground_truth mixes the true label with that of the maps, and "
            "config.token_labels.maps is not set"
        )
    if config.loss != "softmax":
        raise UserError(f"config.token_labels is for loss='softmax', got {config.loss!r}")
    if config.objective != "classes":
        raise UserError(
            f"config.token_labels and objective={config.objective!r} are two ways to learn; choose "
            "one of them"
        )
    if config.distill.kind != "none":
        raise UserError(
            f"config.token_labels and distill.kind={config.distill.kind!r} are two ways to learn "
            "from another network; set one of them"
        )

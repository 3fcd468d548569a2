"""What a run learns, by `config.objective`: losses and figures over (outputs, batch)."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from vit_jax.errors import UserError, chosen
from vit_jax.families import registry
from vit_jax.input_pipeline import recipes
from vit_jax.layers.tokens import PATCHES, patches_of
from vit_jax.train import distill, token_labels
from vit_jax.train.contrastive import Contrastive, with_directions
from vit_jax.train.diverse_patches import DiversePatches
from vit_jax.train.losses import get_loss, of_heads
from vit_jax.train.masked_autoencoder import KEPT, MaskedAutoencoding
from vit_jax.train.masked_patches import MaskedPatches
from vit_jax.train.mixing import Mixing
from vit_jax.train.step import Batch, Draw, Judge, Objective, judge_classes


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run learns.

    Attributes:
      loss: `(outputs of the heads, batch) -> [N]`, the loss of each example, or several numbers by
        name, see `step.Objective`.
      judge: What an evaluation counts, see `make_eval_step`; None for a task that is judged by all
        pairs of images and texts together, see `vit_jax.evaluate.pairs`.
      outputs: The number of outputs that the model needs.
      beside: What a batch holds in place of labels, and the model is called with by name beside
        images, whole numbers: the shape of each for one image.
      fresh: `(parameters, key) -> parameters`, what else is done to fresh parameters.
      draw: What changes the batch by chance, and what else the model is called with, see
        `make_train_step`; None for nothing.
      targets: What is made of the labels of a batch, before images are mixed.
      exchange: Draws the patches that the model exchanges between images, see `make_train_step`;
        None for none.
      top5: Whether an evaluation counts the five likeliest classes.
      counts: Whether it counts what is right at all, or tells the loss alone.
      check: Raises UserError for a model without the outputs that the loss needs.
    """

    loss: Objective
    judge: Judge | None
    outputs: int
    beside: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    fresh: Callable[[Any, jax.Array], Any] | None = None
    draw: Draw | None = None
    targets: Callable[[Batch], Batch] = lambda batch: batch
    exchange: Callable[[jax.Array], jax.Array] | None = None
    top5: bool = False
    counts: bool = True
    check: Callable[[nn.Module], None] = lambda model: None


def classes(config: ConfigDict, num_classes: int) -> Task:
    """The classes of the images: `config.loss`, and what else is learned of them.

    That is `config.distill` if there is a teacher, or `config.token_labels`.
    """
    loss = get_loss(config.loss, config.label_smoothing)
    objective = of_heads(loss)
    if config.distill.kind != "none":
        how = config.distill.kind, config.distill.alpha, config.distill.tau
        objective = distill.distilled(loss, *how)
    judge = judge_classes(get_loss(config.loss))
    task = Task(objective, judge, num_classes, top5=num_classes > 5)
    labelling = token_labels.of_config(config)
    if labelling is None:
        return task
    exchange = labelling.box if labelling.mixtoken_alpha else None
    return dataclasses.replace(
        task, loss=labelling.objective, targets=labelling.targets, exchange=exchange
    )


def masked_patches(config: ConfigDict, num_classes: int) -> Task:
    """The colours of patches that the model does not see, as `config.masking` says."""
    del num_classes  # The images' classes are not looked at.
    _refuse_teacher(config)
    stride = registry.get(config.model).stride
    if stride is None:
        raise UserError(_needs_mask_token(config.model.get("model_name") or "this model"))
    mean, std = (recipes.per_channel(config.pp, name) for name in ("mean", "std"))
    how: dict[str, Any] = dict(config.masking)
    task = MaskedPatches(stride(config.model), mean, std, **how)
    return Task(task.loss, task.judge, task.outputs, draw=task.draw, check=_check_masked)


def mae(config: ConfigDict, num_classes: int) -> Task:
    """The pixels of patches that the encoder does not see, as `config.mae` says."""
    del num_classes  # The images' classes are not looked at.
    _refuse_for_pixels(config)
    stride = registry.get(config.model).stride
    if KEPT not in registry.get(config.model).inputs or stride is None:
        raise UserError(
            f"objective='mae' cannot train {config.model.get('model_name') or 'this model'}, which "
            "has no decoder of patches: take one of the models mae_vit_…, as configs/mae.py does"
        )
    task = MaskedAutoencoding(stride(config.model), **config.mae)
    beside = {KEPT: (task.kept(recipes.image_shape(config.pp)),)}
    return Task(task.loss, task.judge, 0, beside, draw=task.draw, counts=False)


def diverse_patches(config: ConfigDict, num_classes: int) -> Task:
    """The classes, and patches that stay apart, as `config.diversity` says."""
    _refuse_teacher(config)
    if config.loss != "softmax":
        raise UserError(
            f"loss={config.loss!r} with objective='diverse_patches', whose losses are of softmax"
        )
    stride = registry.get(config.model).stride
    if stride is None:
        raise UserError(_needs_patches(config.model.get("model_name") or "this model"))
    smoothing = config.label_smoothing
    task = DiversePatches(stride(config.model), **config.diversity, label_smoothing=smoothing)

    def check(model: nn.Module) -> None:
        takes_regions = "regions" in inspect.signature(type(model).__call__).parameters
        if task.mixing and not takes_regions:
            raise UserError(
                f"{_needs_patches(type(model).__name__)}, or set config.diversity.mixing=0"
            )
        if task.compares and not _shows_patches(model, recipes.image_shape(config.pp)):
            raise UserError(_needs_patches(type(model).__name__))

    judge = judge_classes(get_loss(config.loss))
    return Task(task.loss, judge, num_classes, draw=task.draw, top5=num_classes > 5, check=check)


def contrastive(config: ConfigDict, num_classes: int) -> Task:
    """Which text belongs to which image, as `config.contrastive` says."""
    del num_classes  # Texts take the place of classes.
    _refuse_for_pairs(config)
    task = Contrastive(config.contrastive.loss, config.contrastive.rows)

    def check(model: nn.Module) -> None:
        if "tokens" not in inspect.signature(type(model).__call__).parameters:
            raise UserError(
                f"objective='contrastive' cannot train {type(model).__name__}, which takes no "
                "texts: take a model of two towers, as configs/lit.py does"
            )

    beside = {"tokens": (config.text.length,)}
    return Task(task.losses, None, 0, beside, with_directions, task.draw, check=check)


TASKS: dict[str, Callable[[ConfigDict, int], Task]] = {
    "classes": classes,
    "masked_patches": masked_patches,
    "mae": mae,
    "diverse_patches": diverse_patches,
    "contrastive": contrastive,
}


def get_task(config: ConfigDict, num_classes: int) -> Task:
    """The task of a complete config, on a dataset of `num_classes`.

    Raises:
      UserError: for an unknown objective, and for settings that do not fit it.
    """
    return chosen(config.objective, TASKS, "objective")(config, num_classes)


def _check_masked(model: Any) -> None:
    has_token = getattr(model, "mask_token", False) and model.transformer is not None
    if not has_token or "unpooled" not in model.classifier:
        raise UserError(_needs_mask_token(type(model).__name__))


def _needs_mask_token(model: str) -> str:
    return (
        f"objective='masked_patches' cannot train {model}: it needs a Vision Transformer that has "
        "a mask token and answers for every patch. Set config.model.mask_token=True and "
        "config.model.classifier='token_unpooled', as configs/masked_patches.py does"
    )


def _needs_patches(model: str) -> str:
    return (
        f"objective='diverse_patches' cannot train {model}, which does not show its patches or has "
        "no classifier of them: take one of the models diversepatch_deit_…"
    )


def _shows_patches(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether the model shows its patches; only shapes are computed."""

    def shown(images: jax.Array) -> Any:
        variables = model.init(jax.random.key(0), images, train=False)
        return model.apply(variables, images, train=False, mutable=[PATCHES])[1]

    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return bool(patches_of(jax.eval_shape(shown, images)))


def _refuse_for_pairs(config: ConfigDict) -> None:
    """Raises UserError for all settings at once that have no meaning for images with texts."""
    meaningless = {
        "accum_steps": config.accum_steps > 1,
        "data.repeats": config.data.repeats > 1,
        "data.real_labels": config.data.real_labels is not None,
        "distill.kind": config.distill.kind != "none",
        "init_head_bias": config.init_head_bias is not None,
        "label_smoothing": config.label_smoothing > 0,
        "loss": config.loss != "softmax",
        "mixing": Mixing(**config.mixing).on,
        "mixture": bool(config.mixture),
        "token_labels.on": config.token_labels.on,
    }
    if wrong := [name for name, is_set in meaningless.items() if is_set]:
        raise UserError(
            f"objective='contrastive' cannot go with {', '.join(f'config.{x}' for x in wrong)}: "
            "a batch is images with texts, not with classes, each pair once, and all of it is "
            "compared at once. Its own loss is config.contrastive.loss; for memory, lower the "
            "batch, or take more devices"
        )


def _refuse_for_pixels(config: ConfigDict) -> None:
    """Raises UserError for all settings at once that have no meaning where pixels are learned."""
    meaningless = {
        "distill.kind": config.distill.kind != "none",
        "init_head_bias": config.init_head_bias is not None,
        "label_smoothing": config.label_smoothing > 0,
        "loss": config.loss != "softmax",
        "mixing": Mixing(**config.mixing).on,
        "token_labels.on": config.token_labels.on,
    }
    if wrong := [name for name, is_set in meaningless.items() if is_set]:
        raise UserError(
            f"objective='mae' cannot go with {', '.join(f'config.{x}' for x in wrong)}: it "
            "predicts the pixels of images, whose classes are not looked at. What it learns is set "
            "by config.mae"
        )


def _refuse_teacher(config: ConfigDict) -> None:
    if config.distill.kind != "none":
        raise UserError(
            f"distill.kind={config.distill.kind!r} with objective={config.objective!r}: only the "
            "objective 'classes' learns from a teacher"
        )

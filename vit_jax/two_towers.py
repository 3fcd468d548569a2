"""A model with an image and a text tower, ready for use.

towers = load_two_towers("LiT-B16B.npz", vocabulary="LiT-B16B.txt")
classifier = towers.zero_shot(["cat", "dog"])
probabilities = classifier.probabilities(classifier.read_image("photo.jpg")[None])
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax import inference
from vit_jax.checkpoint import names
from vit_jax.errors import UserError
from vit_jax.evaluate import zeroshot
from vit_jax.families import registry
from vit_jax.text import Tokenizer, get_tokenizer

if TYPE_CHECKING:
    import jax
    from flax import linen as nn

    from vit_jax.checkpoint.facts import Model

# A function that batches pass through on their way, such as a bar that shows their progress.
Follow = Callable[[Sequence[Any]], Iterable[Any]]
BOTH = ("images", "tokens")  # what a model of two towers takes
_TEXTS = 256  # that pass through the model at once


@dataclasses.dataclass(frozen=True)
class TwoTowers(inference.ImageReader):
    """A model that gives images and texts as unit vectors of one space, computing in float32.

    Attributes:
      weights: Where everything about it came from.
      model: The linen module, `(images=None, tokens=None) -> (zimg, ztxt, out)`.
      variables: {'params': nested dict of float32 arrays}.
      vocabulary: Path or address of the tokenizer's vocabulary; None takes what the weights tell.
    """

    weights: inference.Weights
    model: "nn.Module"
    variables: dict[str, Any]
    vocabulary: str | None = None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """A list of N texts to int32 [N, length].

        Raises:
          UserError: as `get_tokenizer`; and where the vocabulary is another than the model's.
        """
        known = self.weights.model
        found = _tokenizer(known, self.vocabulary)
        _require_ids_below(known, found)
        return found

    @property
    def known(self) -> "Model":
        return self.weights.model

    def dispatch(self, images: Any) -> "jax.Array":
        """`images` that may still be computed when this returns."""
        return self._embedded(self.placed, images=images)[0]

    def images(self, images: Any) -> np.ndarray:
        """Images as `dispatch` takes them to float32 [N, D], unit vectors."""
        return np.asarray(self.dispatch(images))

    def texts(self, texts: Sequence[str], follow: Follow = iter) -> np.ndarray:
        """Any number of texts to float32 [N, D], unit vectors.

        Args:
          texts: Longer ones are cut.
          follow: What the batches of texts pass through.
        """
        size = min(len(texts), _TEXTS)
        batches = [texts[start : start + size] for start in range(0, len(texts), max(size, 1))]
        found = [self._of_batch(batch, size) for batch in follow(batches)]
        if not found:
            raise UserError("expected texts; got none")
        return np.concatenate(found)

    def _of_batch(self, texts: Sequence[str], size: int) -> np.ndarray:
        # The last batch is filled up, so that one program serves them all.
        tokens = self.tokenizer([*texts, *[""] * (size - len(texts))])
        return np.asarray(self._embedded(self.placed, tokens=tokens)[1])[: len(texts)]

    def zero_shot(
        self,
        names: Sequence[str],
        prompts: Sequence[str] | None = None,
        average: str = "big_vision",
        follow: Follow = iter,
    ) -> "ZeroShot":
        """A classifier whose classes are texts.

        Args:
          names: Of the classes.
          prompts: With {} where the name goes; by default those of the published evaluation that
            averages in this way.
          average: A key of `zeroshot.AVERAGES`.
          follow: As for `texts`.

        Raises:
          UserError: as `zeroshot.class_texts`.
        """
        averaging = zeroshot.AVERAGES[average]
        if prompts is None:
            prompts = zeroshot.PROMPTS[averaging.prompts]()
        texts = zeroshot.class_texts(names, prompts, averaging)
        classes = zeroshot.class_embeddings(self.texts(texts, follow), len(names), averaging)
        return ZeroShot(self, tuple(names), classes)

    @functools.cached_property
    def placed(self) -> Any:
        """The variables on the device, so that no call copies them again."""
        import jax

        return jax.device_put(self.variables)

    @functools.cached_property
    def apply(self) -> Callable[..., Any]:
        """The model on one device, by the attention that is chosen around the call."""
        from vit_jax.layers.attention.choice import attending

        return attending()(functools.partial(self.model.apply, train=False))

    @functools.cached_property
    def _embedded(self) -> Callable[..., Any]:
        import jax

        # Not what it computes on the way, which would be copied out of the program.
        return jax.jit(lambda variables, **inputs: self.apply(variables, **inputs)[:2])


@dataclasses.dataclass(frozen=True)
class ZeroShot(inference.Classifier):
    """A classifier whose classes are texts: the logits are t · zimg · classesᵀ, plus b if it has b.

    A model with `b` was trained by the sigmoid loss (Zhai et al. 2023, arXiv:2303.15343, section
    3.2): each class has a probability of its own, and an image may be of several or of none.

    Attributes:
      towers: The model.
      names: Of the classes.
      classes: A vector for each, [num_classes, D].
    """

    towers: TwoTowers
    names: Sequence[str]
    classes: np.ndarray

    @property
    def known(self) -> "Model":
        return self.towers.known

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def class_names(self) -> Sequence[str]:
        return self.names

    @property
    def is_sigmoid(self) -> bool:
        """Whether each class has a probability of its own."""
        return "b" in self.towers.variables["params"]

    def probabilities_of(self, logits: np.ndarray) -> np.ndarray:
        """Sigmoid or softmax, see `is_sigmoid`."""
        from vit_jax.evaluate.predictions import sigmoid

        return sigmoid(logits) if self.is_sigmoid else super().probabilities_of(logits)

    def dispatch(self, images: Any) -> "jax.Array":
        """`logits` that may still be computed when this returns."""
        return self._scores(self.towers.placed, self.classes, images)

    @functools.cached_property
    def _scores(self) -> Callable[..., Any]:
        import jax
        import jax.numpy as jnp

        def scores(variables: Any, classes: Any, images: Any) -> Any:
            zimg, _, out = self.towers.apply(variables, images=images)
            # In full precision, which accelerators do not give unasked: classes may lie close.
            scores = out["t"][None] * jnp.matmul(zimg, classes.T, precision="highest")
            return scores + out["b"][None] if "b" in out else scores

        return jax.jit(scores)


def load_two_towers(
    path: inference.Path,
    model: str | None = None,
    *,
    vocabulary: str | None = None,
    **how: Any,
) -> TwoTowers:
    """The model of two towers in a checkpoint or a run, with what prepares its images and texts.

    Args:
      path, model, how: As for `inference.load_weights`.
      vocabulary: Path or address of the tokenizer's vocabulary; None takes what the weights tell.

    Raises:
      UserError: as `load_weights` and `get_tokenizer`; for a model without a text tower; and where
        the vocabulary is another than the model's.
    """
    towers = towers_of(inference.load_weights(path, model, **how), vocabulary)
    _ = towers.tokenizer  # what is wrong with it is said at once
    return towers


def towers_of(weights: inference.Weights, vocabulary: str | None = None) -> TwoTowers:
    """The model of two towers with these weights; its tokenizer is read when it is first used.

    Raises:
      UserError: for a model without a text tower.
    """
    from vit_jax.models import from_config

    known = weights.model
    takes = registry.get(known.config).inputs
    if takes != BOTH:
        raise UserError(
            f"{known.name} takes {' and '.join(takes)} alone: zero-shot and retrieval need a model "
            "of two towers, for images and for texts, such as LiT-B16B"
        )
    module = from_config(known.config, num_classes=known.num_classes)
    return TwoTowers(weights, module, weights.for_model(), vocabulary)


def _tokenizer(known: "Model", vocabulary: str | None) -> Tokenizer:
    """The model's tokenizer, with the given vocabulary or the one that its weights name."""
    if known.text is None:
        raise UserError(
            f"nothing tells which tokenizer made the texts of {known.name}: name the registered "
            "model that it is, --model NAME"
        )
    if vocabulary is not None:
        return get_tokenizer(dataclasses.replace(known.text, vocabulary=vocabulary))
    try:
        return get_tokenizer(known.text)
    except UserError as error:
        if not known.text.vocabulary:
            raise
        message = str(error).removesuffix(".")
        raise UserError(f"{message}; --vocabulary FILE takes another one") from error


def _require_ids_below(known: "Model", tokenizer: Tokenizer) -> None:
    """Raises UserError for a vocabulary with more entries than the text tower has vectors."""
    size = names.vocabulary_size(known.config)
    if tokenizer.pieces.size > size:
        raise UserError(
            f"the vocabulary has {tokenizer.pieces.size} entries, and {known.name} knows {size}: "
            "it is another model's"
        )

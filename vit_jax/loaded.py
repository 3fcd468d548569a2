"""Any model in one line, from wherever its weights lie.

model = vit_jax.load("hf://facebook/dinov2-base")  # or a file, a folder, a run, an address
features = model.features(images)                # [N, D]; images are prepared as was published
tokens = model.tokens(images)                    # [N, T, D]
logits = model(images)                           # of two towers: zimg, ztxt = model(images, texts)
module, variables = model.module, model.variables
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax import inference, two_towers
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import get, require_images

if TYPE_CHECKING:
    from flax import linen as nn

    from vit_jax.evaluate.looking import Look

# One image or several: uint8 [H, W], [H, W, C] or [N, H, W, C], a path, an image of Pillow, or a
# list of such.
Images = Any


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with its weights, which takes pictures as they are; it computes in float32.

    Images are one or several, of any size: arrays uint8 [H, W], [H, W, C] or [N, H, W, C], paths
    or addresses of files, images of Pillow, or a list of such. Each is prepared as the weights'
    publisher prepared it, see `preprocessing`. One image is a batch of one.

    Attributes:
      reader: What prepares images and passes them through the model: a `LoadedModel`, or
        `TwoTowers` for a model of images and texts.
    """

    reader: inference.LoadedModel | two_towers.TwoTowers

    @property
    def weights(self) -> inference.Weights:
        """The weights, and what is known of their model."""
        return self.reader.weights

    @property
    def name(self) -> str:
        """What the model is called: a registered name, or as it was recorded."""
        return self.weights.model.name

    @property
    def module(self) -> "nn.Module":
        """The linen module, head and all: `module.apply(variables, prepared, train=False)`."""
        return self.reader.model

    @property
    def variables(self) -> dict[str, Any]:
        """What the module takes, {'params': …, 'batch_stats': …}: nested dicts of float32."""
        return self.reader.variables

    @property
    def preprocessing(self) -> Preprocess:
        """How images are prepared."""
        return self.reader.preprocessing

    @property
    def class_names(self) -> Sequence[str] | None:
        """In the order of the logits; None where nobody knows them."""
        return self.weights.model.class_names

    def __call__(self, images: Images, texts: str | Sequence[str] | None = None) -> Any:
        """Logits [N, num_classes]; of two towers the unit vectors (zimg [N, D], ztxt [M, D]).

        Raises:
          UserError: for images that cannot be read; for texts where the model takes none, or none
            where it takes them; and for a model without a head.
        """
        if self._has_two_towers:
            if texts is None:
                raise UserError(
                    f"{self.name} takes images and texts: model(images, texts). Of images alone "
                    "model.features(images) gives the vectors"
                )
            return self.features(images), self.texts(texts)
        if texts is not None:
            raise UserError(f"{self.name} takes images alone, and got texts too")
        self._require_head()
        return self._through(self.reader.dispatch, images)

    def features(self, images: Images) -> np.ndarray:
        """What the head would get, float32 [N, D]: a class token, or tokens pooled.

        Of two towers it is what the image tower gives, unit vectors of the space that it shares
        with the texts. `load(…, part="img")` is that tower alone, without its projection.

        Raises:
          UserError: for images that cannot be read, and for a model that gives features for every
            token instead of the image.
        """
        if self._has_two_towers:
            return self._through(self.reader.dispatch, images)
        self._require_images()
        return self._through(self._features, images)

    def tokens(self, images: Images) -> np.ndarray:
        """The patches' tokens after the last norm, row by row of the image, float32 [N, T, D].

        Class tokens and registers are not among them.

        Raises:
          UserError: for images that cannot be read, and for a family whose models show no tokens.
        """
        if not self._has_two_towers:
            self._require_images()
        return self._through(self._tokens, images)

    def texts(self, texts: str | Sequence[str]) -> np.ndarray:
        """What the text tower gives, float32 [M, D]: unit vectors. Longer texts are cut.

        Raises:
          UserError: for a model that takes no texts, and for a vocabulary that cannot be had.
        """
        return self._text_reader.texts([texts] if isinstance(texts, str) else list(texts))

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """What the text tower takes, int32 [M, length].

        Raises:
          UserError: as `texts`.
        """
        return np.asarray(self._text_reader.tokenizer(texts), np.int32)

    def prepare(self, image: Any) -> Any:
        """One image as the model wants it, float32 [height, width, channels].

        A model of variable size gets it in about its aspect ratio, as a `PatchBatch` without the
        axis N. `vit_jax.patches.stacked` makes a batch of such as of others.

        Raises:
          UserError: for a file that is missing or damaged, for values that are not uint8, and for
            what is no image.
        """
        return self.reader.preprocess(self.decoded(image))

    def decoded(self, image: Any) -> np.ndarray:
        """The pixels of one image, uint8 [height, width, channels of the model]."""
        if isinstance(image, str | os.PathLike):
            from vit_jax.input_pipeline.records import read_image

            name = os.fspath(image)
            return self.reader.decode({"image": read_image(name), "name": name})
        return self.reader.decode({"image": _pixels(image)})

    @property
    def _text_reader(self) -> two_towers.TwoTowers:
        if not isinstance(self.reader, two_towers.TwoTowers):
            raise UserError(f"{self.name} takes no texts: it has no text tower")
        return self.reader

    @property
    def _has_two_towers(self) -> bool:
        return isinstance(self.reader, two_towers.TwoTowers)

    def _require_images(self) -> None:
        require_images(self.weights.model.config, self.name)

    def _require_head(self) -> None:
        self._require_images()
        if not self.weights.model.num_classes:
            raise UserError(
                f"{self.name} has no head: model.features(images) and model.tokens(images) give "
                "what it computes"
            )

    def _through(self, run: Callable[[np.ndarray], Any], images: Images) -> np.ndarray:
        return inference.in_batches(run, _Prepared(self.prepare, listed(images)))

    def attention(self, images: Images) -> "list[Look]":
        """The attention weights that the model computes on each image, with the patches' grid.

        Raises:
          UserError: for images that cannot be read, and for a model without one grid of patches;
            `vit_jax.evaluate.inside.look_inside` gives the weights of any module.
        """
        from vit_jax.evaluate.looking import looks

        return list(looks(self, images))

    def forward(self, what: str) -> Callable[[Any, Any], Any]:
        """What computes 'logits', 'features', 'tokens' or 'text': of (variables, inputs).

        The inputs are prepared images, or for 'text' what the tokenizer gives. It is pure, to be
        compiled for whatever devices; `tokens` says of which models there are tokens.

        Raises:
          UserError: as the call, `features` and `texts`; and from a call, as `tokens`.
        """
        makers = {
            "logits": self._forward_logits,
            "features": self._forward_features,
            "tokens": self._forward_tokens,
            "text": self._forward_texts,
        }
        return makers[what]()

    def _forward_logits(self) -> Callable[[Any, Any], Any]:
        self._require_head()
        return lambda variables, x: self.module.apply(variables, x, train=False)

    def _forward_features(self) -> Callable[[Any, Any], Any]:
        if self._has_two_towers:
            return lambda variables, x: self.module.apply(variables, images=x, train=False)[0]
        from vit_jax.evaluate.features import feature_model, without_head

        self._require_images()
        module = feature_model(self.weights.model.config)
        return lambda variables, x: module.apply(without_head(variables), x, train=False)

    def _forward_texts(self) -> Callable[[Any, Any], Any]:
        _ = self._text_reader
        return lambda variables, x: self.module.apply(variables, tokens=x, train=False)[1]

    def _forward_tokens(self) -> Callable[[Any, Any], Any]:
        from vit_jax.layers.tokens import PATCHES, patches_of

        if not self._has_two_towers:
            self._require_images()
        branch = self._image_branch()

        def tokens(variables: Any, images: Any) -> Any:
            applied: Any = self.module.apply(variables, images, train=False, mutable=[PATCHES])
            shown = applied[1].get(PATCHES, {})
            found = patches_of({PATCHES: shown.get(branch, {}) if branch else shown}).get("final")
            if found is None:
                title = get(self.weights.model.config).title
                raise UserError(
                    f"{self.name} shows no tokens: models of {title} keep no patches to the end. "
                    "model.features(images) gives one vector an image"
                )
            return found

        return tokens

    @functools.cached_property
    def _features(self) -> Callable[[np.ndarray], Any]:
        return self._compiled(self.forward("features"))

    @functools.cached_property
    def _tokens(self) -> Callable[[np.ndarray], Any]:
        return self._compiled(self.forward("tokens"))

    def _image_branch(self) -> str | None:
        """The branch of the tree in which the image tower lies; None for a model without towers."""
        parts = get(self.weights.model.config).parts(self.weights.model.config)
        return next((at for at, part in parts.items() if "images" in get(part).inputs), None)

    def _compiled(self, forward: Callable[[Any, Any], Any]) -> Callable[[np.ndarray], Any]:
        """`forward(variables, images)` on one device, by the attention that is chosen around it."""
        import jax

        from vit_jax.layers.attention.choice import attending

        program, variables = jax.jit(attending()(forward)), self.reader.placed
        return functools.partial(program, variables)


class _Prepared(Sequence[Any]):
    """Images that are prepared when their turn comes."""

    def __init__(self, prepare: Callable[[Any], Any], images: Sequence[Any]):
        self._prepare, self._images = prepare, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        return self._prepare(self._images[index])


def listed(images: Images) -> Sequence[Any]:
    """One image or several as several; UserError where there is none."""
    several = list(images) if isinstance(images, list | tuple) else [images]
    if isinstance(images, np.ndarray) and images.ndim == 4:
        several = list(images)
    if not several:
        raise UserError("expected one image or more; got none")
    return several


def _pixels(image: Any) -> np.ndarray:
    """The pixels of an array or of an image of Pillow, uint8 [H, W] or [H, W, C]."""
    from PIL import Image

    if isinstance(image, Image.Image):
        from vit_jax.input_pipeline.decode import pixels_of

        try:
            return pixels_of(image)
        except (ValueError, OSError) as error:
            raise UserError(f"cannot read the image: {error}") from error
    if not hasattr(image, "__array__"):
        raise UserError(
            "expected an image: a path, an array uint8 [height, width, channels] or an image of "
            f"Pillow; got {type(image).__name__}"
        )
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise UserError(
            f"expected pixels of uint8, 0 to 255, which are prepared here; got {pixels.dtype} "
            f"{list(pixels.shape)}. Images that are prepared already go to "
            "model.module.apply(model.variables, images, train=False)"
        )
    return pixels


def load(
    what: inference.Path, model: str | None = None, *, vocabulary: str | None = None, **how: Any
) -> Loaded:
    """A model ready for use, from a file, a folder, a run's workdir or an address such as hf://….

    Args:
      what, model, how: As for `inference.load_weights`: `part`, `image_size` and `allow` too.
      vocabulary: Path or address of the vocabulary of a model of texts; None takes what the weights
        tell. It is read when texts come.

    Raises:
      UserError: as `inference.load_weights`.
    """
    return of_weights(inference.load_weights(what, model, **how), vocabulary)


def of_weights(weights: inference.Weights, vocabulary: str | None = None) -> Loaded:
    """The model of these weights; `vocabulary` as for `load`."""
    known = weights.model
    if get(known.config).inputs == two_towers.BOTH:
        return Loaded(two_towers.towers_of(weights, vocabulary))
    from vit_jax.models import from_config

    module = from_config(known.config, num_classes=known.num_classes)
    return Loaded(inference.LoadedModel(weights, module, weights.for_model()))

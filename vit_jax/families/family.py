"""What the library knows of a family of models: one dataclass, filled in by one file a family.

No JAX is imported here, so that listing, recognising and converting need none.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import Table

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Size = tuple[int, int]  # height and width in pixels
Edits = dict[str, Callable[[np.ndarray], np.ndarray]]
Pairs = list[tuple[str, str]]


RGB = 3


def channels(config: Config) -> int:
    """The number of channels of the model's images.

    It is no constructor field: linen modules take it from the images that they are initialised
    with. A config may say it under `channels`; what does not say it is of RGB images.
    """
    return config.get("channels", RGB)


def is_head(name: str) -> bool:
    """Whether one of our names is part of a classifier: `head…` is, and nothing else is."""
    return name.startswith("head")


@dataclasses.dataclass(frozen=True)
class Weights:
    """A published checkpoint of an architecture. An empty string or None means: not known.

    Attributes:
      preprocess: How these weights want their images; `preprocess.size` is the image size that
        they were last trained at.
      num_classes: Outputs of the published head; 0 for none, None where that is not known.
      top1: Published accuracy on ImageNet-1k in percent, at that image size.
      source: Where the file lies: an address, or `timm/NAME.TAG` for a repository of the hub.
      layout: Whose names the file uses.
      licence: The licence of the weights, as SPDX writes it.
    """

    preprocess: Preprocess
    num_classes: int | None = 1000
    top1: float | None = None
    source: str = ""
    layout: str = "timm"
    licence: str = ""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Constructor fields under a registered name.

    Attributes:
      config: Fields of the family's class; `num_classes` is not among them.
      weights: The published checkpoints by tag. The first one decides how the model prepares its
        images, and how many classes it has, where nobody says otherwise.
      timm_name: What timm's `create_model` calls it, where that is another name; '' means that timm
        has no such model.
      alias_of: The name of the architecture that this one is, under the name that another library
        gives it.
    """

    config: Config
    weights: Mapping[str, Weights]
    timm_name: str | None = None
    alias_of: str | None = None

    @property
    def default(self) -> Weights:
        """The first of the weights."""
        return next(iter(self.weights.values()))


class Difference(NamedTuple):
    """A detail in which a library as it is shipped computes otherwise than we do."""

    what: str
    ours: str
    shipped: str


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of a checkpoint's tensors (our names), and the words in which it is recorded.

    Attributes:
      step: What is done, in words.
      changed: Function that replaces a tensor, by name.
      dropped: Names that go.
      added: Function that makes a tensor, by name.
      config: Constructor fields that change with it.
    """

    step: str
    changed: Mapping[str, Callable[[np.ndarray], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    dropped: tuple[str, ...] = ()
    added: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """How transformers builds a model of the family.

    Attributes:
      model_type: The entry `model_type` of its `config.json`.
      architectures: Its classes with a head and without one; None where it has none without.
      write: Config and image size to the other entries of `config.json`, such that transformers
        computes what we do as far as its entries can say it.
      read: The reverse: the entries of a `config.json` to our config.
      shipped: Entries with which transformers ships published weights, and whose values decide
        what is computed.
      ours: The values of these entries with which transformers computes what we do.
      eps: Name patterns (searched) of normalisations whose eps no entry can say, and that eps.
      activations: Name patterns (searched) of modules whose `activation` no entry can say, and the
        activation.
      refuses: Classes of its models that no model here computes, and why.
      remark: What a reader of such a directory should know, in words.
    """

    model_type: str
    architectures: tuple[str, str | None]
    write: Callable[[Config, Size], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    shipped: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ours: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    activations: Callable[[Config], Mapping[str, str]] = lambda config: {}
    refuses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Timm:
    """How timm builds a model of the family.

    Attributes:
      args: Config to the arguments that make timm's model of any registered name into one of these
        sizes; None where timm takes no such arguments.
      img_size: Whether timm's models of the family are built with `img_size`.
      base: Config to the registered name to start from, for sizes that have no name in timm; None
        takes the family's first.
      cls: Config to the class of timm, `module.Class`, that is built in the place of a registered
        name where that takes no sizes.
      always: Arguments that are given even where a registered name has these sizes.
      act_layer: The activation, where timm's default is not ours and it can be chosen.
      builds: Config and arguments of timm's to whether these make what tells models of one name
        apart: how tokens become one vector.
    """

    args: Callable[[Config], dict[str, Any]] | None = None
    img_size: bool = True
    base: Callable[[Config], str] | None = None
    cls: str | None = None
    always: bool = False
    act_layer: str | None = None
    builds: Callable[[Config, Mapping[str, Any]], bool] = lambda config, args: True


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a library calls the family's tensors, and how it is asked to build the model.

    Attributes:
      table: Config to its names and ours, heads included.
      reading: Names and shapes of a file to the table that reads it, where files of several ages
        differ; None takes `table`.
      respell: Names of a file, of any version of the library, to {the table's spelling: the
        file's}.
      headless: Config to the table of a model without a head, where that is more than `table`
        without the heads' rows.
      ignore: Regular expressions (full match) of names that carry no information. BatchNorm's
        `num_batches_tracked` is always ignored.
      skeleton: Names of a file to a config with which `table` reads it, for models of any size; its
        number of heads is 1. Only where the names do not tell the config, and with `Family.infer`.
      computed: Whether a file of these names leaves its positions to be computed for an image size.
      complete: Whether shapes (the file's names) have what `after_reading` must know.
      after_reading: Our shapes as read and the image size to the edit that completes the tensors,
        or None.
      before_writing: Config, our tensors and the image size (None: not known) to the edit that the
        layout asks for, or None.
      buffers: Config to what of `ignore` a strict loader needs, made anew on export.
      points: Config to pairs of modules, ours and the library's, that give the same tokens: where a
        comparison looks on the way to the logits.
      differences: Config to what the library ships otherwise than we compute.
      unsaid: Config to those of `differences` that nothing beside the weights can tell the library.
      build: How the library builds the model: `Timm`, `HuggingFace`, or a function of config,
        number of classes and image size that gives the arguments of its class; None where no
        package builds it.
    """

    table: Callable[[Config], Table]
    reading: Callable[[Shapes], Table] | None = None
    respell: Callable[[Iterable[str]], dict[str, str]] | None = None
    headless: Callable[[Config], Table] | None = None
    ignore: tuple[str, ...] = ()
    skeleton: Callable[[Iterable[str]], dict[str, Any]] | None = None
    computed: Callable[[Iterable[str]], bool] = lambda names: False
    complete: Callable[[Shapes], bool] = lambda shapes: True
    after_reading: Callable[[Shapes, Size], Edit | None] | None = None
    before_writing: (
        Callable[[Config, Mapping[str, np.ndarray], Size | None], Edit | None] | None
    ) = None
    buffers: Callable[[Config], dict[str, np.ndarray]] = lambda config: {}
    points: Callable[[Config], Pairs] = lambda config: []
    differences: Callable[[Config], list[Difference]] = lambda config: []
    unsaid: Callable[[Config], list[Difference]] = lambda config: []
    build: Any = None


@dataclasses.dataclass(frozen=True)
class Family:
    """The models of one class.

    Attributes:
      title: As the field calls it.
      paper: arXiv number.
      model: Module below `vit_jax.models`, and the linen class in it: 'deit:DeiT'.
      computes: Its numerics in words, equal for families that give equal numbers with equal
        tensors.
      architectures: By registered name.
      layouts: What others call the tensors, by layout: 'timm', 'hf', 'big_vision', …
      small: Config to the fields that make a tiny model of it, entries of mappings, which takes
        images of 64 pixels: for runs that prove nothing but that they run.
      reference: The layout of what the family is proven against.
      image_size: Config and shapes (our names) to the image size that the parameters are for; None
        where they fit any, or do not tell. Raises UserError where they leave it open.
      num_patches: Config and shapes to the number of patches of an image, for models that think in
        one grid of patches; None for others.
      stride: Config to the (height, width) in pixels from one patch to the next, for the same.
      resize: Config, old size, new size and method (see `resize_posembed`) to the edits that fit
        parameters to another image size. None where nothing can be done.
      resize_method: How the family's own code resizes: the method where nobody asks for another.
      stem: Config to our names of the kernels [..., channels, features] that read the pixels.
      leaves_open: Config to what the tensors of such a model never tell, in words.
      shapes: Config, number of classes and image size to the shapes of all tensors by our names;
        None has them traced from the linen class.
      infer: Shapes by our names to the config of the model that has them, for a family whose models
        of any size are recognised. Raises UserError for tensors that are no such model's. None has
        registered architectures matched only.
      fit: What is asked for and what was inferred (`num_heads` None where the file does not tell),
        to the config of the file; None where the two contradict each other. Only with `infer`.
      forms: Configs beside the registered ones whose names a file may have.
    """

    title: str
    paper: str
    model: str
    computes: str
    architectures: Mapping[str, Architecture]
    layouts: Mapping[str, Layout]
    small: Callable[[Config], Mapping[str, Any]]
    reference: str = "timm"
    image_size: Callable[[Config, Shapes], Size | None] = lambda config, shapes: None
    num_patches: Callable[[Config, Shapes], int] | None = None
    stride: Callable[[Config], Size] | None = None
    resize: Callable[[Config, Size, Size, str], Edits] | None = None
    resize_method: str = "timm"
    stem: Callable[[Config], tuple[str, ...]] = lambda config: ("embedding/kernel",)
    leaves_open: Callable[[Config], tuple[str, ...]] = lambda config: ()
    shapes: Callable[[Config, int, Size], dict[str, Shape]] | None = None
    infer: Callable[[Shapes], dict[str, Any]] | None = None
    fit: Callable[[Config, Config], dict[str, Any] | None] | None = None
    forms: tuple[Config, ...] = ()

    def channels_of(self, config: Config, shapes: Shapes) -> int:
        """The number of channels of the images that tensors are for; RGB's where they tell none."""
        kernels = [shapes[name] for name in self.stem(config) if name in shapes]
        return kernels[0][-2] if kernels and len(kernels[0]) > 1 else RGB

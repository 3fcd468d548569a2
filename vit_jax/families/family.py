"""What the library knows of a family of models: one dataclass, filled in by one file a family.

No JAX is imported here, so that listing, recognising and converting need none.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import Table
from vit_jax.families.text import Text

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


def text_length(config: Config) -> int:
    """The number of tokens of a text for which the model's parameters are made.

    It is no constructor field, as `channels` is none; a config may say it under `length`.
    """
    return config.get("length", Text.length)


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
      text: How they want their texts, where they are those of two towers; None for images alone.
    """

    preprocess: Preprocess
    num_classes: int | None = 1000
    top1: float | None = None
    source: str = ""
    layout: str = "timm"
    licence: str = ""
    text: Text | None = None


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
    """A change of a checkpoint's tensors, and the words in which it is recorded.

    Names are ours, but for what a layout asks for before reading.

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


class Start(NamedTuple):
    """What becomes of weights of one family with which a model of another one begins.

    Attributes:
      left: Regular expressions (full match) for our names of tensors that are left behind.
      fresh: The same for tensors of the model that these weights do not have.
    """

    left: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """How transformers builds a model of the family.

    Attributes:
      model_type: The entry `model_type` of its `config.json`.
      architectures: Its classes with a head and without one; None for one that it does not have.
      write: Config and image size to the other entries of `config.json`, such that transformers
        computes what we do as far as its entries can say it.
      read: The reverse: the entries of a `config.json` to our config.
      shipped: Entries with which transformers ships published weights, and whose values decide
        what is computed.
      ours: The values of these entries with which transformers computes what we do.
      eps: Name patterns (searched) of normalisations whose eps no entry can say, and that eps.
      activations: Name patterns (searched) of modules whose `activation` no entry can say, and the
        activation.
      pooler: Whether its class without a head is built with a layer after the pooled token only
        where the weights have one, `pooler.dense`.
      outputs: The entry that counts the outputs of a head: a projection has a width, not labels.
      reads: Further classes that compute the same under another `model_type`, and that: read, and
        never written.
      refuses: Classes of its models that no model here computes, and why.
      norm_eps: Config to what is added to the length by which a vector of two towers is divided,
        where that is not 0, which no entry can say.
      remark: What a reader of such a directory should know, in words.
    """

    model_type: str
    architectures: tuple[str | None, str | None]
    write: Callable[[Config, Size], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    shipped: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ours: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    activations: Callable[[Config], Mapping[str, str]] = lambda config: {}
    pooler: bool = False
    norm_eps: Callable[[Config], float] = lambda config: 0.0
    outputs: str = "num_labels"
    reads: Mapping[str, str] = dataclasses.field(default_factory=dict)
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
      zeros: Names of tensors that our models do not have, and our tensor whose last axis is as
        long: a file may have them if they are zeros, and zeros are written.
      ignore: Regular expressions (full match) of names that carry no information. BatchNorm's
        `num_batches_tracked` is always ignored.
      skeleton: Names of a file to a config with which `table` reads it, for models of any size; its
        number of heads is 1. Only where the names do not tell the config, and with `Family.infer`.
      computed: Whether a file of these names leaves its positions to be computed for an image size.
      complete: Whether shapes (the file's names) have what `after_reading` must know.
      after_reading: Our shapes as read and the image size to the edit that completes the tensors,
        or None.
      before_reading: Config, and the file's tensors in the table's spelling, to the edit of these
        that lets the table read them, or None. It may look at the numbers, and raises UserError
        for those that no model here has; tensors of zeros are taken.
      before_writing: Config, our tensors and the image size (None: not known) to the edit that the
        layout asks for, or None.
      buffers: Config and our tensors to what of `ignore` a strict loader needs, made anew on
        export.
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
    zeros: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    skeleton: Callable[[Iterable[str]], dict[str, Any]] | None = None
    computed: Callable[[Iterable[str]], bool] = lambda names: False
    complete: Callable[[Shapes], bool] = lambda shapes: True
    after_reading: Callable[[Shapes, Size], Edit | None] | None = None
    before_reading: Callable[[Config, Mapping[str, np.ndarray]], Edit | None] | None = None
    before_writing: (
        Callable[[Config, Mapping[str, np.ndarray], Size | None], Edit | None] | None
    ) = None
    buffers: Callable[[Config, Mapping[str, np.ndarray]], dict[str, np.ndarray]] = (
        lambda config, tensors: {}
    )
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
        tensors; or config to them, where models of one family differ: see `numerics`.
      architectures: By registered name.
      layouts: What others call the tensors, by layout: 'timm', 'hf', 'big_vision', …
      small: Config to the fields that make a tiny model of it, entries of mappings, which takes
        images of 64 pixels: for runs that prove nothing but that they run.
      inputs: What its models take, in the order of their arguments: 'images' [N, H, W, C],
        'tokens' [N, L], 'kept' [N, K], the numbers of the patches to look at. Those of images alone
        classify them.
      parts: Config to the configs of the models that it is made of, by the branch of the tree under
        which each has its parameters: a file of it holds several sets of weights.
      starts_from: Config to the families whose weights, or a part of theirs, such a model can begin
        with when it is fine-tuned, and what becomes of their tensors. A head is always its own.
      text_length: Config to the number of tokens of a text, for models that take tokens.
      reference: The layout of what the family is proven against.
      figures: Recorded figures that prove it where no library has that layout, in words.
      official: The layout of the paper's own repository, where that is PyTorch's: what a state dict
        is in that is said to be 'official'. A family that has no such layout has none.
      frozen: Config to regular expressions (full match) for our names of the parameters that no run
        trains: tables that are made once, and loaded with the weights.
      image_size: Config and shapes (our names) to the image size that the parameters are for; None
        where they fit any, or do not tell. Raises UserError where they leave it open.
      num_patches: Config and shapes to the number of patches of an image, for models that think in
        one grid of patches; None for others.
      stride: Config to the (height, width) in pixels from one patch to the next, for the same.
      resize: Config, old size, new size and method (see `resize_posembed`) to the edits that fit
        parameters to another image size. None where nothing can be done.
      resize_method: How the family's own code resizes: the method where nobody asks for another.
      stem: Config to our names of the kernels [..., channels, features] that read the pixels.
      stem_norms: Config to our names of tensors [..., channels] that normalise the pixels. Where
        there are any, weights fit images of their own number of channels only.
      asks: What no tensor tells of such a model, in words, where it is not to be guessed: a file is
        of one only if a name, a config or a record says so. '' where the tensors tell all.
      predicts_pixels: Whether its models give pixels of as many channels as they take: weights then
        fit images of their own number of channels only, too.
      leaves_open: Config to what the tensors of such a model never tell, in words.
      shapes: Config, number of classes and image size to the shapes of all tensors by our names;
        None, or a function that returns None, has them traced from the linen class.
      infer: Shapes by our names to the config of the model that has them, for a family whose models
        of any size are recognised. Raises UserError for tensors that are no such model's. None has
        registered architectures matched only.
      fit: What is asked for and what was inferred (`num_heads` None where the file does not tell),
        to the config of the file; None where the two contradict each other. Only with `infer`.
      flexible: Config to the side of a patch in pixels, and the number of patches that an image is
        fitted into in about its aspect ratio: what models of variable size take as a `PatchBatch`.
        None for others.
      labels_tokens: Whether its models show two heads, of the class [N, K] and of the patches
        [N, T, K], and take patches to exchange, `mix`: see `vit_jax.layers.head.classify_tokens`.
      forms: Configs beside the registered ones whose names a file may have.
    """

    title: str
    paper: str
    model: str
    computes: str | Callable[[Config], str]
    architectures: Mapping[str, Architecture]
    layouts: Mapping[str, Layout]
    small: Callable[[Config], Mapping[str, Any]]
    inputs: tuple[str, ...] = ("images",)
    parts: Callable[[Config], Mapping[str, Config]] = lambda config: {}
    starts_from: Callable[[Config], Mapping[str, Start]] = lambda config: {}
    text_length: Callable[[Config], int] = text_length
    reference: str = "timm"
    figures: str = "official figures"
    official: str = "torch"
    frozen: Callable[[Config], tuple[str, ...]] = lambda config: ()
    image_size: Callable[[Config, Shapes], Size | None] = lambda config, shapes: None
    num_patches: Callable[[Config, Shapes], int] | None = None
    stride: Callable[[Config], Size] | None = None
    resize: Callable[[Config, Size, Size, str], Edits] | None = None
    resize_method: str = "timm"
    stem: Callable[[Config], tuple[str, ...]] = lambda config: ("embedding/kernel",)
    stem_norms: Callable[[Config], tuple[str, ...]] = lambda config: ()
    asks: str = ""
    predicts_pixels: bool = False
    leaves_open: Callable[[Config], tuple[str, ...]] = lambda config: ()
    shapes: Callable[[Config, int, Size], dict[str, Shape] | None] | None = None
    infer: Callable[[Shapes], dict[str, Any]] | None = None
    fit: Callable[[Config, Config], dict[str, Any] | None] | None = None
    flexible: Callable[[Config], tuple[int, int] | None] = lambda config: None
    labels_tokens: bool = False
    forms: tuple[Config, ...] = ()

    def numerics(self, config: Config) -> str:
        """What `computes` says of a model."""
        return self.computes(config) if callable(self.computes) else self.computes

    def channels_of(self, config: Config, shapes: Shapes) -> int:
        """The number of channels of the images that tensors are for; RGB's where they tell none."""
        kernels = [shapes[name] for name in self.stem(config) if name in shapes]
        return kernels[0][-2] if kernels and len(kernels[0]) > 1 else RGB

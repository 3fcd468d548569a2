"""What is known of a checkpoint, found once, when it is opened.

What decides which model it holds, in this order: the model that the caller names, what the file
records, and the registered models whose names and shapes fit. Where several fit and would give
different numbers, none is taken: `Facts.candidates` lists them, and whatever needs the model is a
UserError that says what differs.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vit_jax.allow import NOT_FINITE
from vit_jax.checkpoint import hf_dir, names, recognise, recorded
from vit_jax.checkpoint.files.archive import Spec
from vit_jax.checkpoint.recognise import Candidate
from vit_jax.checkpoint.recorded import Recorded
from vit_jax.class_names import class_names as known_class_names
from vit_jax.errors import UserError
from vit_jax.families import released
from vit_jax.families.family import Shapes, Size, channels
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import ModelSpec, comparable, config_of, get, registered, resolve
from vit_jax.families.resize import Grid
from vit_jax.families.text import Text

_SOME_SIZE = (1, 1)  # that files may be of any
# What a recorded config with missing fields, or fields of other types, makes of a table or a shape.
_NO_CONFIG = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True)
class Model:
    """What must be known of a model to use its weights.

    Attributes:
      name: Registered, or as it was recorded.
      config: Constructor fields.
      num_classes: Outputs of its head; 0 for none.
      image_size: (height, width) in pixels; None where nothing tells it.
      preprocess: How it wants its images.
      class_names: In the order of the logits; None where nobody knows them.
      text: How it wants its texts; None where it takes none, or nothing tells it.
      size_is_known: Whether the image size was recorded or given, or the tensors leave no other.
      licence: Of the weights, as their model card says it; '' where nothing tells it.
    """

    name: str
    config: Mapping[str, Any]
    num_classes: int
    image_size: Size | None
    preprocess: Preprocess
    class_names: list[str] | None
    size_is_known: bool = True
    text: Text | None = None
    licence: str = ""

    @property
    def flexible(self) -> tuple[int, int] | None:
        """The side of a patch and the number of patches of an image; see `Family.flexible`."""
        return get(self.config).flexible(self.config)

    def metadata(self) -> dict[str, Any]:
        """In the words of our own metadata, which `recorded.read` understands.

        An image size that was only assumed is left out.
        """
        fields = recorded.described(
            self.name,
            self.config,
            self.preprocess,
            self.class_names,
            self.image_size,
            self.text,
            self.licence,
        )
        if not self.size_is_known:
            fields["image_size"] = None
            del fields["preprocess"]["size"]
        return fields


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a checkpoint.

    Attributes:
      path: As given.
      format: 'npz', 'safetensors', 'torch', 'flax', 'orbax' or 'hf'.
      layout: Whose names it has: 'linen', 'released', 'big_vision', 'timm', 'hf', …
      models: Registered models that it can hold; empty for a size of its own.
      candidates: All models that fit where they would give different numbers; else empty.
      undecided: Why there is no model, in words; '' where there is one.
      ambiguous: What the file leaves open, in words.
      name: What the model is called; '' without one.
      config: Constructor fields; None without a model.
      num_params: Numbers held in parameters.
      dtypes: dtype -> number of tensors.
      grid: (rows, columns) of patches; None where it is neither square nor recorded.
      image_size: (height, width) in pixels that the tensors are for, as far as they tell.
      num_classes: 0 means that there is no head.
      preprocess: As recorded in the file, else the model's own; None without a model.
      text: The same for texts; None, too, for a model that takes none.
      class_names: As recorded in the file; None if they are not.
      recorded: Whether the file says which model it is.
      history: The conversions that it has been through, oldest first.
      notes: What a reader should know.
      steps: What is done beyond renaming when it is read, in words.
      skipped: Tensors that are no parameters, such as an optimizer's.
      needs_size: Whether the image size must be given, because positions are computed for it.
      tensors: Shape and dtype of every parameter by our names.
      metadata: Text stored beside the tensors.
      head_is_zero: Whether every number of the head is zero; None without a head, and where nobody
        looked: see `identify`.
      zero_biases: Biases that are zero in every layer, with a # for each number in their names, ->
        how many; None where nobody looked.
      not_finite: Tensor -> how many of its numbers are NaN or infinite; None where nobody looked.
      other_function: In words, how the model that the weights were made for computes otherwise than
        the one here, where that is an error; else ''.
      size_is_known: Whether the image size was recorded or given, or the tensors leave no other.
      licence: As for `Model`.
      origin: The address and the commit of a file of the hub; '' of others.
    """

    path: str
    format: str
    layout: str
    models: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    undecided: str
    ambiguous: tuple[str, ...]
    name: str
    config: dict[str, Any] | None
    num_params: int
    dtypes: dict[str, int]
    grid: Grid | None
    image_size: Size | None
    num_classes: int
    preprocess: Preprocess | None
    class_names: list[str] | None
    recorded: bool
    history: list[dict[str, Any]]
    notes: tuple[str, ...]
    steps: tuple[str, ...]
    skipped: tuple[str, ...]
    needs_size: bool
    tensors: dict[str, Spec]
    metadata: dict[str, str]
    head_is_zero: bool | None = None
    zero_biases: dict[str, int] | None = None
    not_finite: dict[str, int] | None = None
    other_function: str = ""
    size_is_known: bool = True
    text: Text | None = None
    licence: str = ""
    origin: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by our names."""
        return {name: spec.shape for name, spec in self.tensors.items()}

    def require_model(self) -> dict[str, Any]:
        """The config, complete; UserError where it is not known, or several models fit."""
        if self.config is None:
            raise UserError(f"{self.path!r}: {self.undecided}")
        if not recognise.heads_known(self.config):
            raise UserError(
                f"{self.path!r} is no registered model, and nothing in it tells its number of "
                "attention heads; name the model"
            )
        if self.needs_size:
            raise UserError(
                f"{self.path!r} holds no position embeddings: its model computes them (sincos2d), "
                "and only the image size tells how many; give it"
            )
        if self.other_function:
            raise UserError(f"{self.path!r}: {self.other_function}")
        return self.config

    def require_size(self, given: Size | None) -> None:
        """Raises UserError for weights that are of another image size than the given one."""
        if given is None or self.image_size in (None, given):
            return
        (rows, columns), (height, width) = self.image_size, given
        raise UserError(
            f"{self.path!r} is for images of {rows}×{columns} pixels, not of {height}×{width}; "
            "`vit-jax convert --image-size` resizes it"
        )

    def model(self) -> Model:
        """What must be known to use the weights; UserError as `require_model`."""
        config = self.require_model()
        preprocess = (self.preprocess or Preprocess()).for_channels(channels(config))
        if self.image_size is not None:
            preprocess = dataclasses.replace(preprocess, size=self.image_size)
        found = self.class_names
        if found is None or len(found) != self.num_classes:
            found = known_class_names(self.num_classes)
        return Model(
            self.name,
            config,
            self.num_classes,
            self.image_size,
            preprocess,
            found,
            self.size_is_known,
            self.text,
            self.licence,
        )

    @property
    def resize_method(self) -> str | None:
        """How positions are resized where nobody asks for another way; None where they are not."""
        family = None if self.config is None else get(self.config)
        return None if family is None or family.resize is None else family.resize_method

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        fields = dict(vars(self)) | {"resize_method": self.resize_method}
        fields["preprocess"] = self.preprocess and self.preprocess.to_dict()
        fields["text"] = self.text and self.text.to_dict()
        fields["candidates"] = [c.described() for c in self.candidates]
        fields["tensors"] = {
            name: {"shape": list(spec.shape), "dtype": spec.dtype.name}
            for name, spec in self.tensors.items()
        }
        return fields


@dataclasses.dataclass
class Decision:
    """Which model a file holds.

    Attributes:
      chosen: The model; None where none or several fit.
      spec: The registered model that says how images are prepared, if there is one.
      candidates: All that fit, where they differ.
      notes: What was decided between what.
      why_not: Why nothing was chosen.
    """

    chosen: Candidate | None = None
    spec: ModelSpec | None = None
    candidates: tuple[Candidate, ...] = ()
    notes: list[str] = dataclasses.field(default_factory=list)
    why_not: str = ""


def decide(
    path: str, shapes: Shapes, found: Recorded, model: Any, image_size: Size | None = None
) -> Decision:
    """Which model the tensors are of.

    Args:
      path: For messages.
      shapes: By the file's names, without a trainer's prefixes.
      found: What the file records.
      model: What the caller names: a registered name or a config; None for nothing.
      image_size: (height, width) in pixels that the caller gives.

    Raises:
      UserError: where the named or the recorded model has other tensors.
    """
    if model is not None:
        return _named(path, shapes, found, model)
    if found.config is not None:
        try:
            return _recorded(path, shapes, found)
        except UserError:  # it is whole, and the tensors are not its model's
            raise
        except _NO_CONFIG as error:
            found.notes.append(
                f"the config that {found.by} holds is damaged and not used: "
                f"{type(error).__name__} {error}"
            )
            found.config = None
    size = found.image_size or image_size
    fitting = recognise.of_tensors(shapes, size, family=found.family)
    if (args := found.timm_args) and any(c.layout == "timm" for c in fitting):
        fitting = [c for c in fitting if recorded.builds(c.config, args)]
    if found.candidates and fitting:
        fitting = _of_that_name(path, fitting, found)
    fitting = [_with_recorded_heads(path, c, found) for c in fitting]
    return _one_of(fitting, found) if fitting else Decision(why_not=_why_none(shapes, found))


def _of_that_name(path: str, fitting: list[Candidate], found: Recorded) -> list[Candidate]:
    """Those that are what the file is called; UserError where it has the tensors of others only."""
    named = [c for c in fitting if c.name in found.candidates]
    if named:
        return named
    # Of an architecture that is registered at several sizes, one name stands for all of them.
    wanted = [comparable(registered()[name].config.to_dict()) for name in found.candidates]
    same = [c for c in fitting if comparable(c.config) in wanted]
    if not same:
        called, tensors = found.candidates[0], ", ".join(str(c.name) for c in fitting if c.name)
        raise UserError(
            f"{path!r}: {found.by} says that it holds {called}, and its tensors are those of "
            f"{tensors or 'another model'}. One of them is wrong: name the model that it should "
            "be to read it all the same"
        )
    return same


def _named(path: str, shapes: Shapes, found: Recorded, model: Any) -> Decision:
    config = config_of(model)
    called = f"a {model}" if isinstance(model, str) else "this model"
    chosen = _as_model(f"{path!r} does not hold {called}", shapes, config)
    spec = model if isinstance(model, ModelSpec) else None
    if isinstance(model, str):
        spec = resolve(model)
    decision = Decision(chosen, spec or _spec(chosen))
    if found.config is not None and get(found.config) is not get(config):
        decision.notes.append(
            f"{found.by} says that this is a {get(found.config).title}; it is read as {called}"
        )
    elif found.config is None and get(config).asks:
        decision.notes.append(
            f"nothing in it says {get(config).asks}. It is read as {called}: "
            f"{get(config).numerics(config)}"
        )
    return decision


def _recorded(path: str, shapes: Shapes, found: Recorded) -> Decision:
    assert found.config is not None
    title = found.name or get(found.config).title
    about = (
        f"{path!r}: {found.by} says that it holds {title}, but its tensors do not fit. Name the "
        "model that it should be to read it all the same"
    )
    chosen = _as_model(about, shapes, found.config)
    named = registered().get(found.name or "")
    return Decision(chosen, named or _spec(chosen))


def _as_model(about: str, shapes: Shapes, config: Any) -> Candidate:
    try:
        return recognise.of_model(config, shapes)
    except UserError as error:
        raise UserError(f"{about}: {error}") from None
    except KeyError as error:
        raise UserError(f"{about}: the config of the model has no field {error}") from None


def _spec(chosen: Candidate) -> ModelSpec | None:
    return registered()[chosen.name] if chosen.name else None


def _with_recorded_heads(path: str, candidate: Candidate, found: Recorded) -> Candidate:
    """The candidate with the number of attention heads that the file records, if it must tell."""
    if found.num_heads is None or recognise.heads_known(candidate.config):
        return candidate
    width = candidate.config["hidden_size"]
    if found.num_heads < 1 or width % found.num_heads:
        raise UserError(
            f"{path!r} records {found.num_heads} attention heads, which do not divide its width "
            f"{width}"
        )
    config = recognise.with_heads(candidate.config, found.num_heads)
    return dataclasses.replace(candidate, config=config)


def _one_of(fitting: list[Candidate], found: Recorded) -> Decision:
    first = fitting[0]
    # A recorded preprocessing leaves only what is computed to tell candidates apart.
    told = found.preprocess is not None
    kinds = {c.numerics[:1] if told else c.numerics for c in fitting}
    asked = "" if _is_named(found) else get(first.config).asks
    if asked or len(kinds) > 1:
        lines = "\n".join(f"  --model {c.name}: {c.described()}" for c in fitting)
        several = "several models, which compute different numbers"
        why = (
            f"its tensors fit {several if len(kinds) > 1 else first.name}, and nothing in it says "
        )
        why += f"{asked}. Name" if asked else "which it is; name"
        return Decision(candidates=tuple(fitting), why_not=f"{why} the model:\n{lines}")
    decision = Decision(first, _spec(first))
    others = [str(c.name) for c in fitting[1:]]
    if others:
        decision.notes.append(
            f"taken for {first.name}; the tensors fit {', '.join(others)} too, which compute the "
            "same"
        )
    return decision


def _is_named(found: Recorded) -> bool:
    """Whether the file says how its model computes what no tensor tells."""
    return bool(found.candidates) or "act_layer" in found.timm_args


def _why_none(shapes: Shapes, found: Recorded) -> str:
    said = f"{found.by} says that it is a {found.family}; " if found.family else ""
    if oblong := recognise.of_tensors(shapes, _SOME_SIZE, family=found.family):
        called = ", ".join(str(c.name) for c in oblong)
        return (
            f"it has the tensors of {called}, but for a number of positions that is no square "
            "image's. For oblong images give their size, --image-size HEIGHTxWIDTH, such as 160x320"
        )
    return (
        f"it holds the parameters of no registered model. {said}{recognise.why_none(shapes)}. Name "
        "the model that it should be to see where they differ; `vit-jax models` lists the names"
    )


def layout_name(layout: str, shapes: Shapes) -> str:
    """What to call the layout of a file: 'released' for the old spelling of our own."""
    if layout in (names.LINEN, names.OFFICIAL):
        return "released" if released.is_old(shapes) else names.LINEN
    return layout


def image_size_of(
    candidate: Candidate, recorded_size: Size | None, given: Size | None
) -> tuple[Size | None, str]:
    """(height, width) in pixels that the tensors are for, and in words what it was taken from.

    What is recorded comes first, then what is given, where the tensors fit it; else they tell, and
    the words say so where they leave others open.
    """
    config, shapes = candidate.config, candidate.shapes
    if "images" not in get(config).inputs:
        return None, ""
    for size in (recorded_size, given):
        if size is not None and not names.differences(config, shapes, size):
            return size, ""
    size, family = candidate.image_size, get(config)
    if family.num_patches is None or size in _usual_sizes(config):
        return size, ""
    lie = f"nothing in it tells how its {family.num_patches(config, shapes)} patches lie"
    if size is None:
        return None, f"{lie}: give the image size, --image-size HEIGHTxWIDTH"
    grid = names.grid_of(config, size)
    assert grid is not None  # who counts patches has a grid of them
    rows, columns = grid
    return size, f"{lie}: {rows} × {columns} is assumed; --image-size HEIGHTxWIDTH says another"


def _usual_sizes(config: Mapping[str, Any]) -> set[Size]:
    """The image sizes for which weights of this architecture are registered."""
    known, fields = get(config).architectures.values(), comparable(config)
    same = [a for a in known if comparable(a.config) == fields] or known
    return {weights.preprocess.height_width for a in same for weights in a.weights.values()}


def other_function(found: Recorded, config: Mapping[str, Any]) -> tuple[list[str], bool]:
    """In words, how the recorded model computes otherwise than ours, and whether that is an error.

    It is none as transformers ships published weights, which were made for our model.
    """
    family = get(config)
    if found.config is not None and get(found.config) is family:
        recorded, ours = family.numerics(found.config), family.numerics(config)
        if recorded != ours:
            return [f"{found.by} says {recorded}; the model that was named has {ours}"], True
    hugging_face = get(config).layouts.get("hf")
    if not found.entries or hugging_face is None:
        return [], False
    build = hugging_face.build
    differ = hf_dir.notes(found.entries, build)
    return differ, not hf_dir.is_shipped(found.entries, build)


def require_finite(path: str, counts: Mapping[str, int]) -> None:
    """Raises UserError for tensors of which so many numbers are NaN or infinite."""
    if counts:
        raise UserError(f"{path!r}: {not_finite(counts)}. Go on with --allow {NOT_FINITE}")


def not_finite(counts: Mapping[str, int]) -> str:
    """Tensors with numbers that are NaN or infinite, in words."""
    named = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:8])
    more = ", …" if len(counts) > 8 else ""
    what = "tensor holds" if len(counts) == 1 else "tensors hold"
    return f"{len(counts)} {what} numbers that are NaN or infinite: {named}{more}"


def count(tensors: Mapping[str, Spec], config: Mapping[str, Any] | None) -> int:
    """Numbers in parameters, running statistics left out."""
    statistics = names.statistics(config) if config is not None else ()
    return sum(math.prod(s.shape) for n, s in tensors.items() if n not in statistics)

"""What a file says of its model beside its tensors: name, sizes, preprocessing, class names.

Read are our own metadata (`vit_jax`), the arguments for timm (`timm`, or the `config.json` of its
repositories), the JSON files of a Hugging Face directory or of open_clip's, and the licence in a
model card. What is damaged is not used, and said.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.checkpoint import hf_dir, open_clip
from vit_jax.checkpoint.files.archive import Archive
from vit_jax.checkpoint.files.npz import MAX_METADATA
from vit_jax.errors import UserError
from vit_jax.families.family import RGB, HuggingFace, Size, Timm
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import (
    ModelSpec,
    differing,
    families,
    family_of,
    get,
    of_repository,
    registered,
)
from vit_jax.families.text import TOKENIZER_SETTINGS, Text, tokenizer_kind

# timm's arguments that tell apart models of one name: how tokens are pooled, and the activation.
_POOLING = ("global_pool", "class_token", "fc_norm")
_TELLING = (*_POOLING, "act_layer")
OURS, TIMM, HISTORY = "vit_jax", "timm", "vit_jax_conversion"


@dataclasses.dataclass
class Recorded:
    """What is recorded; None where nothing is.

    Attributes:
      by: Who says so, in words.
      name: What the model is called.
      candidates: Registered names that are meant, where a foreign name fits several.
      family: The family, where that is known and the config is not.
      config: Constructor fields.
      num_heads: Attention heads, where the config is not known.
      image_size: (height, width) in pixels.
      preprocess: How images are prepared.
      text: How texts are.
      tokenizer: The kind of tokenizer that lies beside the weights, see `Text.kind`.
      class_names: In the order of the logits.
      history: The conversions that the file has been through, oldest first.
      notes: What was damaged, and what computes otherwise than our model.
      entries: The `config.json` of transformers; {} without one.
      timm_args: Arguments of timm's that tell apart models of one name.
      licence: Of the weights; '' where nothing tells it.
    """

    by: str = ""
    name: str | None = None
    candidates: tuple[str, ...] = ()
    family: str | None = None
    config: dict[str, Any] | None = None
    num_heads: int | None = None
    image_size: Size | None = None
    preprocess: Preprocess | None = None
    text: Text | None = None
    tokenizer: str | None = None
    class_names: list[str] | None = None
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    entries: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timm_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    licence: str = ""


def read(archive: Archive, beside: Mapping[str, Any]) -> Recorded:
    """Everything recorded in a file's metadata and in the JSON files beside it.

    Args:
      archive: The open file.
      beside: JSON objects by name of file, see `hf_dir.read`.

    Raises:
      UserError: for a config.json of a model that no family here is.
    """
    found = read_beside(beside)
    for key, reader in ((TIMM, _read_timm_metadata), (OURS, _read_ours), (HISTORY, _read_history)):
        if key in archive.metadata:
            _careful(archive.metadata[key], key, reader, found)
    return found


def read_repository(repository: str, found: Recorded) -> None:
    """Adds what is registered of the weights of a repository of the hub, 'org/name'.

    The name says the architecture, where nothing in the repository does. What the repository says
    of images, texts and the licence goes before what is registered.

    Raises:
      UserError: where the repository describes another model than its name.
    """
    spec = of_repository(repository)
    if spec is None:
        return
    if found.config is not None:
        _require_same(repository, spec, found)
    elif not found.candidates and found.family in (None, spec.family):
        found.by = found.by or f"the name of {repository}"
        found.candidates = tuple(n for n, s in registered().items() if s.config == spec.config)
    found.preprocess = found.preprocess or spec.preprocess
    found.text = found.text or spec.weights.text
    found.licence = found.licence or spec.weights.licence


def _require_same(repository: str, spec: ModelSpec, found: Recorded) -> None:
    assert found.config is not None
    differ = differing(spec.config.to_dict(), found.config)
    if differ:
        raise UserError(
            f"{repository} holds a {spec.family} by its name, and {found.by} describes another: "
            f"{'; '.join(differ)}. Name the model that it should be, --model NAME, to go on"
        )


def read_beside(beside: Mapping[str, Any]) -> Recorded:
    """What the JSON files beside the weights say; UserError as `read`."""
    found = Recorded()
    config = beside.get(hf_dir.CONFIG)
    if config is not None and "model_type" in config:
        _read_hugging_face(config, beside.get(hf_dir.PREPROCESSOR), found)
    elif config is not None:
        _read_timm(config, found, hf_dir.CONFIG)
    if hf_dir.OPEN_CLIP in beside:
        _read_open_clip(beside[hf_dir.OPEN_CLIP], found)
    found.tokenizer = tokenizer_kind(beside.get(TOKENIZER_SETTINGS, {}))
    found.licence = hf_dir.licence(beside.get(hf_dir.CARD, {})) or found.licence
    return found


def _careful(text: str, key: str, reader: Callable[[Any, Recorded], None], found: Recorded) -> None:
    """Reads one entry of the metadata; damage is noted."""
    try:
        reader(json.loads(text), found)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, UserError) as error:
        reason = str(error) or type(error).__name__
        found.notes.append(f"its metadata {key!r} is damaged and not used: {reason}")


# --- ours -----------------------------------------------------------------------------------------


def _read_ours(fields: Any, found: Recorded) -> None:
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    found.by = "its metadata"
    if isinstance(name := fields.get("name"), str):
        found.name = name
    if isinstance(config := fields.get("config"), dict):
        family_of(config)  # an error for a family that we do not know
        found.config = config
    if "image_size" in fields:  # null where it was not known, whatever others had to be told
        found.image_size = _size(fields["image_size"])
    if isinstance(names := fields.get("class_names"), list):
        found.class_names = [str(name) for name in names]
    if isinstance(preprocess := fields.get("preprocess"), dict):
        found.preprocess = _sensible(Preprocess.from_dict(preprocess))
    if isinstance(text := fields.get("text"), dict):
        found.text = Text.from_dict(text)
    if isinstance(licence := fields.get("licence"), str):
        found.licence = licence


def described(
    name: str,
    config: Mapping[str, Any],
    preprocess: Preprocess,
    class_names: list[str] | None,
    image_size: Size | None,
    text: Text | None = None,
    licence: str = "",
) -> dict[str, Any]:
    """A model in the words of our own metadata, for `read` to understand.

    Names of ImageNet's classes are left out: their number tells them.
    """
    from vit_jax.class_names import class_names as known_class_names

    known = class_names is None or class_names == known_class_names(len(class_names))
    return {
        "name": name,
        "config": dict(config),
        "preprocess": preprocess.to_dict(),
        "class_names": None if known else class_names,
        "image_size": image_size,
        **({} if text is None else {"text": text.to_dict()}),
        **({"licence": licence} if licence else {}),
    }


def fitting_npz(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata without class names if an npz file cannot hold them: thousands of classes."""
    if len(json.dumps(dict(metadata))) <= MAX_METADATA:
        return dict(metadata)
    fields = json.loads(metadata[OURS]) | {"class_names": None}
    return {**metadata, OURS: json.dumps(fields)}


def _read_history(steps: Any, found: Recorded) -> None:
    if not isinstance(steps, list):
        raise ValueError("it is no list of conversions")
    found.history = [step for step in steps if isinstance(step, dict)]


# --- timm -----------------------------------------------------------------------------------------


def _read_timm_metadata(fields: Any, found: Recorded) -> None:
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    _read_timm(fields, found, "its metadata for timm")


def _read_timm(fields: Mapping[str, Any], found: Recorded, by: str) -> None:
    """`architecture`, `model_args` and `pretrained_cfg`, as timm's repositories have them."""
    pretrained = fields.get("pretrained_cfg")
    pretrained = dict(pretrained) if isinstance(pretrained, dict) else {}
    args = fields.get("model_args")
    args = dict(args) if isinstance(args, dict) else {}
    if isinstance(pool := fields.get("global_pool"), str):
        args.setdefault("global_pool", pool)
    if isinstance(classes := fields.get("num_classes"), int):
        args.setdefault("num_classes", classes)
    found.by = by
    if isinstance(heads := args.get("num_heads"), int):
        found.num_heads = heads
    if isinstance(labels := fields.get("label_names"), list):
        found.class_names = [str(label) for label in labels]
    if isinstance(chw := pretrained.get("input_size"), list):
        found.image_size = _size(chw[1:])
    found.preprocess = _timm_preprocess(pretrained)
    found.licence = str(pretrained.get("license") or "")
    architecture = fields.get("architecture")
    if isinstance(architecture, str):
        _timm_model(architecture, str(pretrained.get("tag") or ""), args, found)
    elif isinstance(cls := fields.get("class"), str):
        found.family = _family_of_timm_class(cls)


def _timm_model(name: str, tag: str, args: Mapping[str, Any], found: Recorded) -> None:
    models = timm_models(name, tag)
    if not models:
        raise UserError(
            f"{found.by} says that this is timm's {name!r}, which no model here is; `vit-jax "
            "models` lists what there is"
        )
    if any(name in args for name in _TELLING):  # without a head pooling tells nothing
        found.timm_args = {n: args[n] for n in (*_TELLING, "num_classes") if n in args}
    models = [m for m in models if builds(m.config.to_dict(), found.timm_args)]
    if not models:
        return  # it is another of timm's, which the tensors tell
    # timm computes its Vision Transformers with another GELU than the original. Unless weights are
    # known to be the original's, the name does not tell which GELU they were trained with.
    if all(_tells_numerics(m, tag, args) for m in models):
        if len({m.family for m in models}) == 1:
            found.family = models[0].family
        if not set(args) - {"img_size", "num_classes", "act_layer", "in_chans", *_POOLING}:
            found.candidates = tuple(m.name for m in models)
            found.notes += _other_gelu(models[0], tag, args)


def _other_gelu(model: ModelSpec, tag: str, args: Mapping[str, Any]) -> list[str]:
    """Words where timm computes published weights otherwise than they were trained."""
    layout = families()[model.family].layouts["timm"]
    if layout.build.act_layer in (None, args.get("act_layer")):
        return []
    return [
        f"timm computes it with another {d.what}, {d.shipped}; weights of the tag {tag!r} were "
        f"trained with {d.ours}, which is taken here"
        for d in layout.differences(model.config.to_dict())
    ]


def builds(config: Mapping[str, Any], args: Mapping[str, Any]) -> bool:
    """Whether timm builds the model of this config by these arguments."""
    layout = get(config).layouts.get("timm")
    return layout is None or layout.build.builds(config, args)


def _timm_of(model: ModelSpec) -> Timm:
    return families()[model.family].layouts["timm"].build


def _tells_numerics(model: ModelSpec, tag: str, args: Mapping[str, Any]) -> bool:
    """Whether a name of timm, with a tag and arguments, is that of weights for our model."""
    known = families()[model.family].architectures
    activation = _timm_of(model).act_layer
    if activation is None or args.get("act_layer") == activation:
        return True
    copies = (_timm_copy(w) for a in known.values() for w in a.weights.values())
    return tag in {copy.rpartition(".")[2] for copy in copies if copy}


def timm_models(name: str, tag: str = "") -> list[ModelSpec]:
    """The models here that timm's `name.tag` may be.

    Weights that are registered as `name.tag` decide; otherwise all with timm's name count, without
    those that are the same model under another name.
    """
    source = f"timm/{name}.{tag}"
    exact = [
        spec
        for spec in registered().values()
        for own, weights in families()[spec.family].architectures[spec.name].weights.items()
        if tag and source in (weights.source, f"timm/{spec.name}.{own}", _timm_copy(weights))
    ]
    named = [s for s in registered().values() if name in (s.name, s.timm_name)]
    unique = {s.alias_of or s.name: s for s in (exact or named)}
    return [registered()[n] for n in unique]


def _timm_copy(weights: Any) -> str:
    """The repository in which timm holds the weights, or a copy of them; '' where it has none."""
    copy = getattr(weights, "timm", "")
    own = weights.source if weights.source.startswith("timm/") else ""
    return f"timm/{copy}" if copy else own


def _family_of_timm_class(cls: str) -> str | None:
    for name, family in families().items():
        timm = family.layouts.get("timm")
        if timm is not None and timm.build.cls == cls:
            return name
    return None


def _timm_preprocess(fields: Mapping[str, Any]) -> Preprocess | None:
    try:
        squash = fields.get("crop_mode", "center") == "squash"
        return _sensible(
            Preprocess(
                size=tuple(fields["input_size"][1:]),
                crop=fields["crop_pct"],
                resize="squash" if squash else "shortest",
                method=fields["interpolation"],
                antialias=True,
                mean=tuple(fields["mean"]),
                std=tuple(fields["std"]),
            )
        )
    except (KeyError, TypeError, IndexError, ValueError):
        return None


# --- open_clip ------------------------------------------------------------------------------------


def _read_open_clip(fields: Mapping[str, Any], found: Recorded) -> None:
    """`preprocess_cfg`, and of `model_cfg` the image size: as `open_clip_config.json` has them."""
    found.by = hf_dir.OPEN_CLIP
    try:
        found.image_size = _size(fields["model_cfg"]["vision_cfg"]["image_size"])
        found.preprocess = _sensible(open_clip.preprocess(fields, found.image_size))
        found.config = open_clip.config(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found.notes.append(f"its {hf_dir.OPEN_CLIP} is not used: {error or 'damaged'}")


# --- Hugging Face ---------------------------------------------------------------------------------


def _read_hugging_face(
    config: Mapping[str, Any], processor: Mapping[str, Any] | None, found: Recorded
) -> None:
    name, build = _hugging_face_family(config, found.notes)
    found.by, found.family = hf_dir.CONFIG, name
    found.image_size = _size(config.get("image_size"))
    if not isinstance(config.get("num_attention_heads", 1), int | list):
        raise UserError(f"{hf_dir.CONFIG} has no num_attention_heads")
    try:
        channels = config.get("num_channels", RGB)
        found.config = {"family": name, **build.read(config), "channels": channels}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{hf_dir.CONFIG} does not describe a {name}: no {error}") from None
    found.entries = config
    found.notes += [build.remark] if build.remark else []
    found.notes += _require_ours(config, build, found)
    found.class_names = hf_dir.labels(config)
    if processor is None:
        return
    try:
        way = found.preprocess = _sensible(hf_dir.preprocess(processor))
        assert way is not None
        found.notes += hf_dir.preprocessing_differences(way, way.height_width)
    except (UserError, ValueError) as error:
        found.notes.append(str(error))


def _require_ours(config: Mapping[str, Any], build: HuggingFace, found: Recorded) -> list[str]:
    """UserError for a model that is not ours; in words, why transformers does not write one."""
    assert found.config is not None
    size = found.image_size or (224, 224)
    try:
        build.write(found.config, size)
    except UserError as error:
        return [str(error)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{hf_dir.CONFIG} does not describe a {build.model_type}: {error}"
        ) from None
    hf_dir.require_ours(config, build, found.config, size)
    return []


def _hugging_face_family(config: Mapping[str, Any], notes: list[str]) -> tuple[str, HuggingFace]:
    """The family of a config.json, by its type, its classes and its numerics.

    Where none of a type's families has its numerics, it is the first, and a note says which one
    is closer.
    """
    kind, classes = config.get("model_type"), config.get("architectures")
    classes = classes if isinstance(classes, list) else []
    builds = [
        (name, family.layouts["hf"].build)
        for name, family in families().items()
        if "hf" in family.layouts
    ]
    same = [(name, build) for name, build in builds if build.model_type == kind]
    named = [(n, b) for n, b in same if any(c in b.architectures for c in classes)]
    named = named or [
        (n, b) for n, b in builds if any(b.reads.get(str(c)) == kind for c in classes)
    ]
    if not same:
        known = ", ".join(dict.fromkeys(build.model_type for _, build in builds))
        raise UserError(
            f"{hf_dir.CONFIG} says that this is a {kind!r} model; types that are read: {known}"
        )
    if not named:
        for refused, why in ((c, b.refuses.get(str(c))) for _, b in same for c in classes):
            if why:
                raise UserError(f"{hf_dir.CONFIG} says that this is a {refused}: {why}")
    found = named or same
    differing = {name: len(hf_dir.notes(config, build)) for name, build in found}
    closest, first = min(differing, key=lambda name: differing[name]), found[0][0]
    if not differing[closest]:
        return closest, dict(found)[closest]
    if differing[closest] < differing[first]:
        notes.append(
            f"taken for a {families()[first].title}; {families()[closest].title} differs in less: "
            f"name one of its models to have it read as that"
        )
    return found[0]


# --- checks ---------------------------------------------------------------------------------------


def _size(value: Any) -> Size | None:
    """(height, width) from a number or a pair of numbers; None for anything else."""
    if type(value) is int:
        value = [value, value]
    if isinstance(value, (list, tuple)) and len(value) == 2:
        height, width = value
        if type(height) is int and type(width) is int and height > 0 and width > 0:
            return height, width
    return None


def _sensible(found: Preprocess | None) -> Preprocess | None:
    """What was found; ValueError for values that cannot be."""
    if found is None:
        return None
    values = (found.mean, found.std)
    good = (
        all(type(side) is int and 0 < side < 100_000 for side in found.height_width)
        and _is_number(found.crop)
        and 0 < found.crop <= 1
        and found.resize in ("squash", "shortest")
        and found.method in ("bilinear", "bicubic")
        and type(found.antialias) is bool
        and type(found.truncate) is bool
        and all(type(v) is tuple and v and all(map(_is_number, v)) for v in values)
        and len(found.mean) == len(found.std)
    )
    if not good:
        raise ValueError(f"preprocessing that cannot be: {found}")
    return found


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)

"""Every family, and every model by its registered name.

The original's models have two names: the official one (`ViT-B_16`), with the official
preprocessing, and timm's (`vit_base_patch16_384`), with timm's. All others have timm's name where
timm has them. `NAME.TAG` names one of the published weights of an architecture.
"""

import dataclasses
import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.errors import UserError, suggest
from vit_jax.families.family import Architecture, Config, Family, Weights
from vit_jax.families.preprocess import Preprocess
from vit_jax.tree import flatten

# Listed first; the others follow by the alphabet.
_FIRST = ("vit", "mixer", "lit")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What is known of one registered name.

    Attributes:
      name: As it was registered, with the tag if one was asked for.
      family: A name of `families()`.
      config: Constructor fields of the model, locked; and `family`, except for the configs of the
        original code, whose fields tell it.
      weights: The published checkpoint that is meant.
      timm_name: The architecture that timm's `create_model` knows, or None where timm has none.
      alias_of: The registered name of the same model in the original code, or None.
    """

    name: str
    family: str
    config: ConfigDict
    weights: Weights
    timm_name: str | None
    alias_of: str | None

    @property
    def num_classes(self) -> int:
        """Classes of the published head."""
        return 1000 if self.weights.num_classes is None else self.weights.num_classes

    @property
    def preprocess(self) -> Preprocess:
        """How it wants its images; `preprocess.size` is its image size."""
        return self.weights.preprocess


@functools.cache
def families() -> Mapping[str, Family]:
    """Every family by name; ValueError where two modules claim one name."""
    found: dict[str, Family] = {}
    for module in _modules():
        new = importlib.import_module(f"vit_jax.families.{module}").FAMILIES
        if twice := found.keys() & new.keys():
            raise ValueError(f"family {sorted(twice)} is registered twice")
        found |= new
    return found


def taking(*inputs: str) -> dict[str, Family]:
    """The families whose models take just these inputs, such as 'images', by name."""
    return {name: family for name, family in families().items() if family.inputs == inputs}


def require_images(config: Mapping[str, Any] | ConfigDict, called: str) -> None:
    """Raises UserError unless the model takes images alone, as those do that classify them.

    Args:
      config: Constructor fields.
      called: What to call it, a path or a name.
    """
    family = get(config)
    if family.inputs == ("images",):
        return
    inputs = " and ".join(family.inputs)
    raise UserError(
        f"{called} is a {family.title}, which takes {inputs}; a model that takes images alone is "
        f"wanted here{instead(config)}"
    )


# What else can be done with models that take more than images, by what they take.
_INSTEAD: dict[tuple[str, ...], str] = {
    ("images", "tokens"): "; `vit-jax zeroshot` classifies by texts",
    ("images", "kept"): "; fine-tune it, or take its encoder: `vit-jax convert --part encoder`",
}


def instead(config: Mapping[str, Any] | ConfigDict) -> str:
    """What can be done with a model that classifies no images, in words; '' for nothing else."""
    return _INSTEAD.get(get(config).inputs, "")


def _modules() -> list[str]:
    """The modules beside this one that hold `FAMILIES`: those called as one of `vit_jax.models`."""
    import vit_jax.families
    import vit_jax.models

    here, linen = (
        {module.name for module in pkgutil.iter_modules(package.__path__)}
        for package in (vit_jax.families, vit_jax.models)
    )
    return [*_FIRST, *sorted((here & linen) - {*_FIRST})]


@functools.cache
def registered() -> Mapping[str, ModelSpec]:
    """Every model by name, each with the first of its published weights."""
    specs: dict[str, ModelSpec] = {}
    for family_name, family in families().items():
        for name, architecture in family.architectures.items():
            if name in specs:
                raise ValueError(f"model {name!r} is registered twice")
            specs[name] = _spec(name, family_name, architecture)
    return specs


def _spec(name: str, family_name: str, architecture: Architecture) -> ModelSpec:
    config = dict(architecture.config)
    if _tells_family(config) != family_name:
        config = {"family": family_name, "model_name": name, **config}
    timm_name = architecture.timm_name
    if timm_name is None:
        timm_name = name if "timm" in families()[family_name].layouts else ""
    return ModelSpec(
        name,
        family_name,
        ConfigDict(config).lock(),
        architecture.default,
        timm_name or None,
        architecture.alias_of,
    )


def resolve(name: str) -> ModelSpec:
    """The facts of a registered name, or of `NAME.TAG`, one of its published weights.

    A repository of published weights (`google/vit-base-patch16-224`, timm's
    `vit_base_patch16_224.augreg_in21k`) is one of them too, and another spelling of a name
    (`ViT-B/16`, `vit_b_16`) is that name, where it is the spelling of one only.

    Raises:
      UserError: for an unknown name or tag, with the closest known ones.
    """
    if not isinstance(name, str):
        raise UserError(
            f"expected the registered name of a model, such as 'ViT-B_16', got {name!r}; "
            "`vit-jax models` lists them all"
        )
    specs = registered()
    if name in specs:
        return specs[name]
    base, _, tag = name.partition(".")
    if (found := _of_repository(name) or _spelled_otherwise(name)) is not None:
        return found
    if tag and base in specs:
        weights = families()[specs[base].family].architectures[base].weights
        if tag in weights:
            return dataclasses.replace(specs[base], name=name, weights=weights[tag])
        raise UserError(
            f"{base} has no weights {tag!r}.{suggest(tag, weights)} "
            f"Known: {', '.join(filter(None, weights)) or 'none'}"
        )
    raise UserError(
        f"unknown model {name!r}.{suggest(name, specs)} `vit-jax models` lists them all."
    )


def of_repository(name: str) -> ModelSpec | None:
    """The registered weights that a repository of the hub, 'org/name', holds; None if none are."""
    try:
        return _of_repository(name)
    except UserError:  # timm's, of a model that is not registered
        return None


def _of_repository(name: str) -> ModelSpec | None:
    """The model of published weights under the name of a repository that holds them, or None."""
    repository = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    timm = repository.removeprefix("timm/")
    if timm != name and "/" not in timm:  # as timm writes it
        return resolve(timm)
    specs = registered()
    for spec in specs.values():
        for own in families()[spec.family].architectures[spec.name].weights.values():
            hub = own.source.removeprefix("hf://") if own.source.startswith("hf://") else None
            if repository and repository in (getattr(own, "hf", None), hub):
                return dataclasses.replace(spec, name=name, weights=own)
            if timm in (getattr(own, "timm", None), own.source.removeprefix("timm/")) and timm:
                # timm prepares images its own way, which its name of the architecture stands for.
                base = specs.get(timm.partition(".")[0], spec)
                if base.alias_of != spec.name:
                    return dataclasses.replace(spec, name=name, weights=own)
                weights = dataclasses.replace(own, preprocess=base.preprocess)
                return dataclasses.replace(base, name=name, weights=weights)
    return None


# Organisations of Hugging Face that published the weights of registered models under these names.
_PUBLISHERS = ("google/", "facebook/", "microsoft/", "timm/")


def _spelled_otherwise(name: str) -> ModelSpec | None:
    """The only registered model whose name has the same letters and digits, or None."""
    owner = next((owner for owner in _PUBLISHERS if name.startswith(owner)), "")
    wanted = _letters(name.removeprefix(owner))
    found = [spec for known, spec in registered().items() if _letters(known) == wanted]
    return found[0] if len(found) == 1 else None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9+.]", "", name.lower())


def _tells_family(config: Mapping[str, Any]) -> str | None:
    """The family of a config of the original code, which does not name it."""
    if "tokens_mlp_dim" in config:
        return "mixer"
    if "text_model" in config:
        return "lit"
    if "hidden_size" in config and "classifier" in config:
        return "vit"
    return None


def family_of(config: Mapping[str, Any] | ConfigDict) -> str:
    """The name of the family whose constructor fields `config` holds.

    Raises:
      UserError: for an unknown family, or fields of none.
    """
    if "family" in config:
        if (name := str(config["family"])) not in families():
            raise UserError(f"unknown family {name!r}; known: {', '.join(sorted(families()))}")
        return name
    if (found := _tells_family(dict(config))) is not None:
        return found
    if "hidden_size" in config:
        return "vit"
    raise UserError(
        "a model config needs the fields of a Vision Transformer (hidden_size, patches, …), of an "
        "MLP-Mixer (hidden_dim, tokens_mlp_dim, …), or a `family` and its fields; got "
        f"{sorted(config)}"
    )


def get(config: Mapping[str, Any] | ConfigDict) -> Family:
    """The family whose constructor fields `config` holds; UserError as `family_of`."""
    return families()[family_of(config)]


def model_class(family: str) -> type:
    """The linen class of a family; imports Flax."""
    module, name = families()[family].model.split(":")
    return getattr(importlib.import_module(f"vit_jax.models.{module}"), name)


def family_of_class(cls: type) -> str:
    """The family that a linen class is the model of; UserError for another class."""
    place = f"{cls.__module__.removeprefix('vit_jax.models.')}:{cls.__name__}"
    for name, family in families().items():
        if family.model == place:
            return name
    raise UserError(f"{cls.__name__} is the model of no registered family")


# Fields that change neither a tensor nor, in float32 and float64, a result.
SPEED = ("scan", "remat", "dtype")


def without_speed(config: Config) -> dict[str, Any]:
    """The config without the fields `SPEED`, in its encoder and its towers, too."""
    return {
        field: without_speed(x) if isinstance(x, Mapping) else x
        for field, x in config.items()
        if field not in SPEED
    }


_NOT_OF_A_CONFIG = ("parent", "name", "num_classes")  # fields of a linen module


def config_of(model: Any) -> dict[str, Any]:
    """Constructor fields of a registered name, a ModelSpec, a config, or a linen module.

    Raises UserError for an unknown name or for fields of no known family.
    """
    if isinstance(model, str):
        model = resolve(model)
    if isinstance(model, ModelSpec):
        return model.config.to_dict()
    if isinstance(model, ConfigDict):
        config = model.to_dict()
    elif isinstance(model, Mapping):
        config = dict(model)
    elif dataclasses.is_dataclass(model) and not isinstance(model, type):
        fields = (f.name for f in dataclasses.fields(model) if f.name not in _NOT_OF_A_CONFIG)
        config = {"family": family_of_class(type(model))}
        config |= {name: getattr(model, name, None) for name in fields}
    else:
        raise UserError(f"expected a model name, a config or a linen module; got {type(model)}")
    family_of(config)
    return config


def comparable(config: Config, *ignored: str) -> dict[str, Any]:
    """Constructor fields that decide what a model computes, in types that compare."""
    left_out = {"family", "model_name", "channels", "length", *SPEED, *ignored}

    def plain(x: Any) -> Any:
        if isinstance(x, (Mapping, ConfigDict)):
            return {k: plain(v) for k, v in x.items() if k not in left_out and v is not None}
        return [plain(v) for v in x] if isinstance(x, (list, tuple)) else x

    return plain(config)


def differing(config: Config, other: Config) -> list[str]:
    """In words, the fields that two configs both say, and say otherwise; dropout is left out."""
    one, two = (flatten(comparable(c)) for c in (config, other))
    return [
        f"{name} {two[name]}, not {one[name]}"
        for name in one.keys() & two.keys()
        if "drop" not in name and one[name] != two[name]
    ]


def shrunk(config: Config) -> dict[str, Any]:
    """The config of a tiny model of the same family, which takes images of 64 pixels."""
    small = dict(config)
    for field, value in get(config).small(config).items():
        nested = isinstance(value, Mapping) and isinstance(small.get(field), Mapping)
        small[field] = {**small[field], **value} if nested else value
    return small

"""What the library knows of each model by name: sizes, preprocessing, family. No JAX here.

Two spellings lead to the same model: the official name (`ViT-B_16`), with the official
preprocessing, and timm's (`vit_base_patch16_384`), where the resolution is an override and the
preprocessing is timm's. The survey's families stand in `vit_jax.models.variants`, under timm's
names where timm has them; their configs say the family, `config.family`.
"""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.configs.models import MODEL_CONFIGS
from vit_jax.errors import UserError, suggest
from vit_jax.families.preprocess import Preprocess
from vit_jax.models import variants

# Families of the original code -> module and class.
GOOGLE = {"vit": "vit:VisionTransformer", "mixer": "mixer:MlpMixer"}

# timm's name without the resolution -> official name.
_TIMM_ARCHITECTURES = {
    "vit_tiny_patch16": "ViT-Ti_16",
    "vit_small_patch32": "ViT-S_32",
    "vit_small_patch16": "ViT-S_16",
    "vit_base_patch32": "ViT-B_32",
    "vit_base_patch16": "ViT-B_16",
    "vit_base_patch8": "ViT-B_8",
    "vit_large_patch32": "ViT-L_32",
    "vit_large_patch16": "ViT-L_16",
    "vit_huge_patch14": "ViT-H_14",
    "vit_giant_patch14": "ViT-g_14",
    "vit_tiny_r_s16_p8": "R+ViT-Ti_16",
    "vit_small_r26_s32": "R26+ViT-S_32",
    "vit_base_r26_s32": "R26+ViT-B_32",
    "vit_base_r50_s16": "R50+ViT-B_16",
    "vit_large_r50_s32": "R50+ViT-L_32",
    "mixer_b32": "Mixer-B_32",
    "mixer_b16": "Mixer-B_16",
    "mixer_l16": "Mixer-L_16",
}
_ONLY_AT_224 = ("vit_base_patch8", "vit_huge_patch14", "vit_giant_patch14", "vit_base_r26_s32")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One name's facts.

    Attributes:
      name: As it was registered.
      family: 'vit' (hybrids too), 'mixer', or a name of `vit_jax.models.variants`.
      config: Constructor fields of the model, locked; and `family` where that is of the survey.
      num_classes: Classes of the published head.
      timm_name: The architecture that timm's `create_model` knows, or None where timm has none.
      preprocess: How it wants its images; `preprocess.size` is its image size.
    """

    name: str
    family: str
    config: ConfigDict
    num_classes: int
    timm_name: str | None
    preprocess: Preprocess


def _timm_preprocess(family: str, size: int) -> Preprocess:
    # timm's `crop_pct` by its default configurations.
    crop = 0.875 if family == "mixer" else 0.9 if size == 224 else 1.0
    return Preprocess(size, crop, resize="shortest", method="bicubic", antialias=True)


@functools.cache
def registered() -> Mapping[str, ModelSpec]:
    """Every name, official ones first."""
    timm_names = {official: f"{arch}_224" for arch, official in _TIMM_ARCHITECTURES.items()}
    # The mean over tokens is an argument in timm, not a name.
    timm_names |= {
        name: timm_names[base]
        for name in MODEL_CONFIGS
        if name.endswith("-gap-norep") and (base := name.removesuffix("-gap-norep")) in timm_names
    }
    specs = {
        name: ModelSpec(
            name, family_of(config), config, 1000, timm_names.get(name), Preprocess(size=224)
        )
        for name, config in MODEL_CONFIGS.items()
    }
    for arch, official in _TIMM_ARCHITECTURES.items():
        family = specs[official].family
        sizes = (224,) if family == "mixer" or arch in _ONLY_AT_224 else (224, 384)
        for size in sizes:
            name = f"{arch}_{size}"
            if name in specs:
                raise ValueError(f"model {name!r} is registered twice")
            specs[name] = dataclasses.replace(
                specs[official],
                name=name,
                timm_name=name,
                preprocess=_timm_preprocess(family, size),
            )
    for family, facts in variants.families().items():
        for name, variant in facts.variants.items():
            if name in specs:
                raise ValueError(f"model {name!r} is registered twice")
            config = ConfigDict({"family": family, "model_name": name, **variant.config})
            timm_name = name if facts.reference == "timm" else None
            specs[name] = ModelSpec(
                name, family, config.lock(), variant.num_classes, timm_name, variant.preprocess
            )
    return specs


def resolve(name: str) -> ModelSpec:
    """The facts of a registered name.

    Raises:
      UserError: for an unknown name, with the closest known ones.
    """
    specs = registered()
    if name not in specs:
        raise UserError(
            f"unknown model {name!r}.{suggest(name, specs)} `vit-jax models` lists them all."
        )
    return specs[name]


def family_of(config: Mapping[str, Any] | ConfigDict) -> str:
    """The family whose constructor fields `config` holds."""
    if "family" in config:
        if (family := str(config["family"])) not in _models():
            raise UserError(f"unknown family {family!r}; known: {', '.join(sorted(_models()))}")
        return family
    if "tokens_mlp_dim" in config:
        return "mixer"
    if "hidden_size" in config:
        return "vit"
    raise UserError(
        "a model config needs the fields of a Vision Transformer (hidden_size, patches, …), of an "
        "MLP-Mixer (hidden_dim, tokens_mlp_dim, …), or a `family` and its fields; got "
        f"{sorted(config)}"
    )


def is_google(config: Mapping[str, Any] | ConfigDict) -> bool:
    """Whether this is a Vision Transformer, hybrid or Mixer of the original code."""
    return family_of(config) in GOOGLE


def model_class(family: str) -> type:
    """The linen class of a family; imports Flax."""
    module, name = _models()[family].split(":")
    return getattr(importlib.import_module(f"vit_jax.models.{module}"), name)


def family_of_class(cls: type) -> str:
    """The family that a linen class is the model of; UserError for another class."""
    place = f"{cls.__module__.removeprefix('vit_jax.models.')}:{cls.__name__}"
    for family, model in _models().items():
        if model == place:
            return family
    raise UserError(f"{cls.__name__} is the model of no registered family")


@functools.cache
def _models() -> dict[str, str]:
    """Family -> module:class."""
    return GOOGLE | {name: family.model for name, family in variants.families().items()}

"""What the library knows of each model by name: sizes, preprocessing, family. No JAX here.

Two spellings lead to the same model: the official name (`ViT-B_16`), with the official
preprocessing, and timm's (`vit_base_patch16_384`), where the resolution is an override and the
preprocessing is timm's.
"""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.configs.models import MODEL_CONFIGS
from vit_jax.errors import UserError, suggest
from vit_jax.models.preprocess import Preprocess

# Family -> where its class stands, and the constructor fields by which a config is recognised.
_CLASSES = {
    "vit": "vit_jax.models.vit:VisionTransformer",
    "mixer": "vit_jax.models.mixer:MlpMixer",
}

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
    "vit_tiny_r_s16_p8": "R+ViT-Ti_16",
    "vit_small_r26_s32": "R26+ViT-S_32",
    "vit_base_r26_s32": "R26+ViT-B_32",
    "vit_base_r50_s16": "R50+ViT-B_16",
    "vit_large_r50_s32": "R50+ViT-L_32",
    "mixer_b32": "Mixer-B_32",
    "mixer_b16": "Mixer-B_16",
    "mixer_l16": "Mixer-L_16",
}
_ONLY_AT_224 = ("vit_base_patch8", "vit_huge_patch14", "vit_base_r26_s32")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One name's facts.

    Attributes:
      name: As it was registered.
      family: 'vit' (hybrids too) or 'mixer'.
      config: Constructor fields of the model, locked.
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
    if "tokens_mlp_dim" in config:
        return "mixer"
    if "hidden_size" in config:
        return "vit"
    raise UserError(
        "a model config needs the fields of a Vision Transformer (hidden_size, patches, …) or of "
        f"an MLP-Mixer (hidden_dim, tokens_mlp_dim, …); got {sorted(config)}"
    )


def model_class(family: str) -> type:
    """The linen class of a family; imports Flax."""
    module, name = _CLASSES[family].split(":")
    return getattr(importlib.import_module(module), name)

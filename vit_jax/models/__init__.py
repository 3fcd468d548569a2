"""The models, and how to get one by name.

model = get_model('ViT-B_16', num_classes=1000)
variables = model.init(rng, images, train=False)      # images [N, H, W, 3] in [-1, 1]
logits = model.apply(variables, images, train=False)  # [N, num_classes]
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax import linen as nn
    from ml_collections import ConfigDict

    from vit_jax.models.mixer import MlpMixer
    from vit_jax.models.vit import VisionTransformer

__all__ = ["MlpMixer", "VisionTransformer", "feature_maps", "from_config", "get_model"]

_LAZY = {"VisionTransformer": "vit", "MlpMixer": "mixer"}


def __getattr__(name: str) -> Any:
    # The classes import Flax, the registry beside them need not.
    if name in _LAZY:
        from vit_jax.families import registry

        return registry.model_class(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_model(name: str, *, num_classes: int | None = None, **overrides: Any) -> "nn.Module":
    """Builds a registered model.

    Args:
      name: Official (`ViT-B_16`) or timm's (`vit_base_patch16_224`).
      num_classes: Outputs of the head; 0 returns features; None takes the published number.
        Models of two towers have none: see `vit_jax.models.two_towers`.
      **overrides: Constructor fields. A mapping changes the named entries of the field and
        keeps the others: `transformer={'scan': True}`.

    Raises:
      UserError: for an unknown name or field, with the closest known ones, and for a number out of
        the range of its field.
    """
    from vit_jax.families import registry

    spec = registry.resolve(name)
    config = spec.config.to_dict()
    for field, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(config.get(field), dict):
            config[field] = config[field] | dict(value)
        else:
            config[field] = value
    return from_config(config, num_classes=spec.num_classes if num_classes is None else num_classes)


def feature_maps(model: "nn.Module", variables: Mapping[str, Any], images: Any) -> list[Any]:
    """The output of every stage of a hierarchical model, [N, H / s, W / s, C] with falling sizes.

    For segmentation and detection (timm's `features_only`); in evaluation mode, and traceable.

    Raises:
      UserError: for a model without stages.
    """
    from vit_jax.errors import UserError
    from vit_jax.layers.stages import STAGE_MAPS

    state: Any
    _, state = model.apply(variables, images, train=False, mutable=[STAGE_MAPS])
    stages = {name: x for name, (x,) in state.get(STAGE_MAPS, {}).items()}
    if not stages:
        raise UserError(f"{type(model).__name__} has no stages: its tokens keep one resolution")
    return [stages[f"stage_map_{i}"] for i in range(len(stages))]


def from_config(
    config: "Mapping[str, Any] | ConfigDict", *, num_classes: int = 0, name: str | None = None
) -> "nn.Module":
    """Builds the model whose constructor fields `config` holds.

    Args:
      config: Constructor fields, and the family where they do not tell it.
      num_classes: Outputs of the head; 0 returns features.
      name: What the model is called as a part of another one.

    Raises:
      UserError: for a field that the model does not have, and for a number out of the range of its
        field, which `vit_jax.families.fields` declares.
    """
    from vit_jax.errors import UserError
    from vit_jax.families import fields, registry

    given, cls = config, registry.model_class(registry.family_of(config))
    # What the config tells beside the fields is dropped unless the class has such a field.
    told = {"family", "model_name", "channels", "length"} - set(cls.__dataclass_fields__)
    config = {field: value for field, value in config.items() if field not in told}
    _check_fields(config, cls)
    if config.get("transformer") is not None:
        # It holds the fields of an encoder.
        from vit_jax.models.vit import encoder_class

        encoder = encoder_class(config.get("encoder", cls.encoder))
        _check_fields(config["transformer"], encoder)
    if "num_classes" in cls.__dataclass_fields__:
        config["num_classes"] = num_classes
    elif num_classes:
        raise UserError(
            f"{cls.__name__} has no classes, but num_classes={num_classes} is asked for"
            f"{registry.instead(given)}"
        )
    fields.check(config)
    return cls(**config, **({} if name is None else {"name": name}))


def _check_fields(given: Iterable[str], cls: type) -> None:
    from vit_jax.errors import UserError, suggest

    fields = {f for f in cls.__dataclass_fields__ if f not in ("parent", "name")}
    for field in given:
        if field not in fields:
            raise UserError(
                f"{cls.__name__} has no field {field!r}.{suggest(field, fields)} "
                f"Its fields: {sorted(fields)}"
            )

"""What an `open_clip_config.json` says of its model and of images, as open_clip evaluates them."""

from collections.abc import Mapping
from typing import Any

from vit_jax.families import clip
from vit_jax.families.family import Size
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import get, registered

# Of OpenAI's CLIP, which open_clip takes where its file says nothing.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def preprocess(fields: Mapping[str, Any], size: Size | None) -> Preprocess:
    """The entries of `preprocess_cfg`; what is left out has open_clip's defaults.

    Args:
      fields: The whole file.
      size: (height, width) in pixels, of `model_cfg`.

    Raises:
      ValueError: that says why, for one that does what `Preprocess` cannot say.
    """
    told = fields.get("preprocess_cfg") or {}
    mode = told.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise ValueError(f"its resize_mode is {mode!r}, neither shortest nor squash")
    if size is None:
        raise ValueError("it tells no image size")
    return Preprocess(
        size=size,
        resize=mode,
        method=told.get("interpolation", "bicubic"),
        antialias=True,
        mean=tuple(told.get("mean", _MEAN)),
        std=tuple(told.get("std", _STD)),
    )


# Entries of a tower that make it another than CLIP's.
_OTHERS = {
    "vision_cfg": (
        *("attentional_pool", "no_ln_pre", "ls_init_value", "act_kwargs"),
        *("global_average_pool", "final_ln_after_pool", "pos_embed_type"),
    ),
    "text_cfg": ("hf_model_name", "embed_cls", "no_causal_mask", "proj_bias", "ls_init_value"),
}


def config(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Our fields of the model that `model_cfg` describes; None for one that is not known here.

    That is a plain CLIP, or a registered model whose image tower is timm's. The activation is one
    of them: `quick_gelu`, which is false where the file does not say it.
    """
    told = fields["model_cfg"]
    image, text = told["vision_cfg"], told["text_cfg"]
    if tower := image.get("timm_model_name"):
        return _with_timms_tower(tower, told["embed_dim"], text)
    if any(told[tower].get(name) for tower, names in _OTHERS.items() for name in names):
        return None
    if not isinstance(image.get("layers", 12), int):  # the stages of a ResNet
        return None
    activation = clip.QUICK if told.get("quick_gelu") else clip.ERF
    widths = image.get("width", 768), text.get("width", 512)
    return {
        "family": clip.BOTH,
        "image": {
            "family": clip.VISION,
            "patch_size": image.get("patch_size", 16),
            **_tower(image, widths[0], widths[0] // image.get("head_width", 64), activation),
        },
        "text_model": clip.TEXTS,
        "text": {
            **_tower(text, widths[1], text.get("heads", 8), activation),
            "vocab_size": text.get("vocab_size", 49_408),
            "max_length": text.get("context_length", 77),
        },
        "out_dim": told["embed_dim"],
    }


def _with_timms_tower(name: str, width: int, text: Mapping[str, Any]) -> dict[str, Any] | None:
    """The registered model with this image tower, whose text tower has these sizes."""
    text_width = text.get("width", 512)
    told = {
        "width": text_width,
        "num_layers": text.get("layers", 12),
        "num_heads": text.get("heads", 8),
        "mlp_dim": int(text_width * text.get("mlp_ratio", 4.0)),
        "vocab_size": text.get("vocab_size", 49_408),
    }
    for known, spec in registered().items():
        config = spec.config.to_dict()
        is_it = config.get("image", {}).get("model_name") == name and config["text"] == told
        if is_it and "open_clip" in get(config).layouts and config["out_dim"] == (None, width):
            return {**config, "model_name": known, "length": text.get("context_length", 77)}
    return None


def _tower(fields: Mapping[str, Any], width: int, heads: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_layers": fields.get("layers", 12),
        "num_heads": heads,
        "mlp_dim": int(width * fields.get("mlp_ratio", 4.0)),
        "activation": activation,
    }

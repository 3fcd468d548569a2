"""Sizes of the Google families: ViT, hybrids, MLP-Mixer and LiT.

Sources: ViT and hybrids, Dosovitskiy et al. 2021 (arXiv:2010.11929) Table 1; Ti, S, R+Ti and
R26, Steiner et al. 2021 (arXiv:2106.10270) Table 2; Mixer, Tolstikhin et al. 2021
(arXiv:2105.01601) Table 1; g, which the original code does not name, Zhai et al. 2022
(arXiv:2106.04560) Table 2; LiT, Zhai et al. 2022 (arXiv:2111.07991), whose BERT has the sizes of
Devlin et al. 2018 (arXiv:1810.04805), section 3. Dropout rates are those of the released training
runs.

Every `get_*_config()` returns a fresh `ConfigDict` with the constructor fields of the model;
`MODEL_CONFIGS` maps model names to locked ones, `AUGREG_CONFIGS` the first part of an AugReg
file name (`R_Ti_16-i21k-300ep-…npz`).
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from vit_jax.errors import chosen

MODEL_CONFIGS: dict[str, ConfigDict] = {}
AUGREG_CONFIGS: dict[str, ConfigDict] = {}

# Published before AugReg and never trained by it.
_NOT_IN_AUGREG = ("testing", "testing-unpooled", "ViT-L_32", "R50+ViT-B_16", "ViT-H_14")


def _register(get_config: Callable[[], ConfigDict]) -> Callable[[], ConfigDict]:
    config = get_config()
    name = config.model_name
    MODEL_CONFIGS[name] = config.lock()
    if name not in _NOT_IN_AUGREG and not name.startswith(("Mixer", "LiT")):
        # AugReg's file names avoid characters that a URI would escape.
        AUGREG_CONFIGS[name.replace("ViT-", "").replace("+", "_")] = MODEL_CONFIGS[name]
    return get_config


def _vit(
    name: str, patch: int, width: int, layers: int, heads: int, mlp_dim: int, dropout: float = 0.0
) -> ConfigDict:
    return ConfigDict(
        {
            "model_name": name,
            "patches": {"size": (patch, patch)},
            "hidden_size": width,
            "transformer": {
                "mlp_dim": mlp_dim,
                "num_heads": heads,
                "num_layers": layers,
                "attention_dropout_rate": 0.0,
                "dropout_rate": dropout,
            },
            "classifier": "token",
            "representation_size": None,
        }
    )


def _tiny(name: str, patch: int) -> ConfigDict:
    return _vit(name, patch, width=192, layers=12, heads=3, mlp_dim=768)


def _small(name: str, patch: int) -> ConfigDict:
    return _vit(name, patch, width=384, layers=12, heads=6, mlp_dim=1536)


def _base(name: str, patch: int, dropout: float = 0.0) -> ConfigDict:
    return _vit(name, patch, width=768, layers=12, heads=12, mlp_dim=3072, dropout=dropout)


def _large(name: str, patch: int, dropout: float = 0.0) -> ConfigDict:
    return _vit(name, patch, width=1024, layers=24, heads=16, mlp_dim=4096, dropout=dropout)


def _gap(config: ConfigDict) -> ConfigDict:
    """Mean over the tokens in place of a class token."""
    config.model_name += "-gap-norep"
    config.classifier = "gap"
    return config


def _hybrid(config: ConfigDict, num_layers: tuple[int, ...]) -> ConfigDict:
    """Puts a ResNet before the patches. The root halves twice, each later stage once more."""
    config.resnet = ConfigDict({"num_layers": num_layers, "width_factor": 1})
    return config


def _mixer(
    name: str, patch: int, width: int, blocks: int, tokens_mlp: int, channels_mlp: int
) -> ConfigDict:
    return ConfigDict(
        {
            "model_name": name,
            "patches": {"size": (patch, patch)},
            "hidden_dim": width,
            "num_blocks": blocks,
            "tokens_mlp_dim": tokens_mlp,
            "channels_mlp_dim": channels_mlp,
        }
    )


def _lit(
    name: str, image: ConfigDict, text: tuple[str, dict[str, int]], out_dim: tuple[int | None, int]
) -> ConfigDict:
    text_model, sizes = text
    tokenizer = "bert" if text_model == "bert" else "sentencepiece"
    return ConfigDict(
        {
            "model_name": name,
            "image": image,
            "text_model": text_model,
            "text": sizes,
            "out_dim": out_dim,
            "pp": {"tokenizer_name": tokenizer, "size": 224, "max_len": 16},
        }
    )


def _bert(width: int, layers: int, heads: int, mlp_dim: int) -> tuple[str, dict[str, int]]:
    sizes = {"hidden_size": width, "num_layers": layers, "num_heads": heads, "mlp_dim": mlp_dim}
    return "bert", {**sizes, "vocab_size": 30_522, "max_length": 512, "num_segments": 2}


def _text_transformer(width: int, heads: int, mlp_dim: int) -> tuple[str, dict[str, int]]:
    sizes = {"width": width, "num_layers": 12, "num_heads": heads, "mlp_dim": mlp_dim}
    return "text_transformer", {**sizes, "vocab_size": 16_000}


_BERT_BASE = _bert(width=768, layers=12, heads=12, mlp_dim=3072)
_BERT_LARGE = _bert(width=1024, layers=24, heads=16, mlp_dim=4096)


@_register
def get_testing_config() -> ConfigDict:
    return _vit("testing", 16, width=10, layers=1, heads=2, mlp_dim=10, dropout=0.1)


@_register
def get_testing_unpooled_config() -> ConfigDict:
    config = get_testing_config()
    config.model_name = "testing-unpooled"
    config.classifier = "unpooled"
    return config


@_register
def get_ti16_config() -> ConfigDict:
    return _tiny("ViT-Ti_16", 16)


@_register
def get_s16_config() -> ConfigDict:
    return _small("ViT-S_16", 16)


@_register
def get_b16_config() -> ConfigDict:
    return _base("ViT-B_16", 16)


@_register
def get_l16_config() -> ConfigDict:
    return _large("ViT-L_16", 16, dropout=0.1)


@_register
def get_h14_config() -> ConfigDict:
    return _vit("ViT-H_14", 14, width=1280, layers=32, heads=16, mlp_dim=5120, dropout=0.1)


def get_g14_config() -> ConfigDict:
    """The original code does not name this model: it is registered in `families/vit.py`."""
    return _vit("ViT-g_14", 14, width=1408, layers=40, heads=16, mlp_dim=6144)


@_register
def get_s16_gap_norep_config() -> ConfigDict:
    return _gap(get_s16_config())


@_register
def get_b16_gap_norep_config() -> ConfigDict:
    return _gap(get_b16_config())


@_register
def get_b8_config() -> ConfigDict:
    return _base("ViT-B_8", 8)


@_register
def get_s32_config() -> ConfigDict:
    return _small("ViT-S_32", 32)


@_register
def get_b32_config() -> ConfigDict:
    return _base("ViT-B_32", 32)


@_register
def get_l32_config() -> ConfigDict:
    return _large("ViT-L_32", 32)


@_register
def get_s32_gap_norep_config() -> ConfigDict:
    return _gap(get_s32_config())


@_register
def get_b32_gap_norep_config() -> ConfigDict:
    return _gap(get_b32_config())


@_register
def get_r_ti16_config() -> ConfigDict:
    return _hybrid(_tiny("R+ViT-Ti_16", 8), ())


@_register
def get_r50_b16_config() -> ConfigDict:
    # Nine units in the third stage, where a ResNet-50 has (3, 4, 6, 3): without the fourth
    # stage a token still covers 16 pixels.
    return _hybrid(_base("R50+ViT-B_16", 1, dropout=0.1), (3, 4, 9))


@_register
def get_r26_b32_config() -> ConfigDict:
    return _hybrid(_base("R26+ViT-B_32", 1), (2, 2, 2, 2))


@_register
def get_r26_s32_config() -> ConfigDict:
    return _hybrid(_small("R26+ViT-S_32", 1), (2, 2, 2, 2))


@_register
def get_r50_l32_config() -> ConfigDict:
    return _hybrid(_large("R50+ViT-L_32", 1, dropout=0.1), (3, 4, 6, 3))


@_register
def get_mixer_b16_config() -> ConfigDict:
    return _mixer("Mixer-B_16", 16, width=768, blocks=12, tokens_mlp=384, channels_mlp=3072)


@_register
def get_mixer_b32_config() -> ConfigDict:
    return _mixer("Mixer-B_32", 32, width=768, blocks=12, tokens_mlp=384, channels_mlp=3072)


@_register
def get_mixer_l16_config() -> ConfigDict:
    return _mixer("Mixer-L_16", 16, width=1024, blocks=24, tokens_mlp=512, channels_mlp=4096)


@_register
def get_lit_b16b_config() -> ConfigDict:
    return _lit("LiT-B16B", get_b16_config(), _BERT_BASE, (768, 768))


@_register
def get_lit_b16b_2_config() -> ConfigDict:
    return _lit("LiT-B16B_2", get_b16_config(), _BERT_BASE, (None, 768))


@_register
def get_lit_l16l_config() -> ConfigDict:
    return _lit("LiT-L16L", get_l16_config(), _BERT_LARGE, (None, 1024))


@_register
def get_lit_l16s_config() -> ConfigDict:
    text = _text_transformer(width=384, heads=6, mlp_dim=1536)
    return _lit("LiT-L16S", get_l16_config(), text, (None, 1024))


@_register
def get_lit_l16ti_config() -> ConfigDict:
    text = _text_transformer(width=192, heads=3, mlp_dim=768)
    return _lit("LiT-L16Ti", get_l16_config(), text, (None, 1024))


def by_short_name(name: str) -> ConfigDict:
    """A fresh config by the middle of its function's name: `b16` for `get_b16_config`.

    Raises:
      UserError: for an unknown name, with the closest known ones.
    """
    return chosen(name, short_names(), "model")()


def short_names() -> dict[str, Callable[[], ConfigDict]]:
    """The functions here that make the config of an image model, by what `by_short_name` takes."""
    return {
        key.removeprefix("get_").removesuffix("_config"): value
        for key, value in globals().items()
        if key.startswith("get_") and key.endswith("_config") and not key.startswith("get_lit_")
    }

"""LiT: an image and a text tower in one space (Zhai et al. 2022, arXiv:2111.07991).

Its sizes stand in `configs/models.py`. What is known of a tower is what its own family knows, with
`img/` or `txt/` before the names.
"""

import dataclasses

from vit_jax.configs import models
from vit_jax.families.family import Architecture, Config, Family, Weights
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.published import published_of
from vit_jax.families.text import Text
from vit_jax.families.towers import two_towers

_BUCKET = "gs://vit_models/lit"
_ENDINGS = {"bert": "txt", "sentencepiece": "model"}


def weights_address(name: str) -> str:
    """Where the authors published the weights of a model."""
    return f"{_BUCKET}/{name}.npz"


def vocabulary_address(name: str, tokenizer: str) -> str:
    """Where they published its vocabulary."""
    return f"{_BUCKET}/{name}.{_ENDINGS[tokenizer]}"


def _architecture(config: Config) -> Architecture:
    name, pp = config["model_name"], config["pp"]
    tokenizer = pp["tokenizer_name"]
    text = Text(tokenizer, vocabulary_address(name, tokenizer), pp["max_len"])
    images = Preprocess(pp["size"], truncate=True)
    default = Weights(
        images, num_classes=0, source=weights_address(name), layout="official", text=text
    )
    rows = {
        tag: dataclasses.replace(row, preprocess=images, num_classes=0, text=text)
        for tag, row in published_of(name).items()
    }
    return Architecture(config, {"": default} | rows)


FAMILIES = {
    "lit": Family(
        title="LiT",
        paper="2111.07991",
        model="lit:LiT",
        computes="towers as their families compute them, embeddings divided by their length + 1e-8",
        architectures={
            name: _architecture(config.to_dict())
            for name, config in models.MODEL_CONFIGS.items()
            if "text_model" in config
        },
        layouts={},
        resize_method="official",
        **two_towers(),
        reference="official",
    )
}

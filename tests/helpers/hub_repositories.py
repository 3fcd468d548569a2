"""Repositories with random weights as the libraries themselves write them, and their pipelines.

A pipeline is a function from photographs, uint8 [height, width, 3], to logits: the library's own
processor, and then its own model.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import timm
import torch
import transformers
from PIL import Image

Pipeline = Callable[[Sequence[np.ndarray]], np.ndarray]

CARD = "---\ntags:\n- image-classification\nlicense: {}\nlibrary_name: timm\n---\n# A model\n"


def randomise(model: torch.nn.Module, scale: float = 0.08) -> Any:
    """Every parameter random, so that none hides another; norms stay near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            x.copy_(centre + scale * torch.randn(x.shape, generator=generator))
    return model.eval()


def timm_repository(folder: pathlib.Path, name: str, **sizes: Any) -> Pipeline:
    """What timm pushes to the hub."""
    model = randomise(timm.create_model(name, **sizes))
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    (folder / "README.md").write_text(CARD.format("cc-by-nc-4.0"))
    described = json.loads((folder / "config.json").read_text())
    wanted = timm.data.resolve_data_config(pretrained_cfg=described["pretrained_cfg"])
    transform: Any = timm.data.create_transform(**wanted)

    def logits(photographs: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.stack([transform(Image.fromarray(x)) for x in photographs])
        with torch.inference_mode():
            return model(pixels).numpy()

    return logits


def transformers_repository(
    folder: pathlib.Path, config: Any, processor: Any, shard: str = "5GB"
) -> Callable[[str], Pipeline]:
    """What transformers pushes: the pipeline is asked for by the backend of its processor."""
    model = randomise(transformers.AutoModelForImageClassification.from_config(config))
    model.save_pretrained(folder, max_shard_size=shard)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.format("apache-2.0"))

    def pipeline(backend: str) -> Pipeline:
        prepare = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend)

        def logits(photographs: Sequence[np.ndarray]) -> np.ndarray:
            images = [Image.fromarray(x) for x in photographs]
            with torch.inference_mode():
                return model(**prepare(images, return_tensors="pt")).logits.numpy()

        return logits

    return pipeline

"""Whether masked patches and diverse patches teach anything, on the handwritten digits.

`python benchmarks/objectives_masked.py [SEED …]`: minutes on two CPU cores; `--only masked` or
`--only diverse` runs one half. Bars, for each seed:

- masked patch prediction: the loss on unseen images is at most 0.8 of the entropy of the targets
  where each patch's place is known; what looks at no other patch cannot come below about 0.9, since
  one selected patch in ten is shown as it is;
- fine-tuning after it is at least as good as training from scratch with as many steps;
- with the losses of diverse patches the tokens of the last block are less alike, by at least a
  fifth, than without, at an accuracy that is no more than a point lower.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vit_jax import inference, input_pipeline, models
from vit_jax.checkpoint.io import unscanned
from vit_jax.configs import common, digits, masked_patches
from vit_jax.evaluate.similarity import similarity_by_depth
from vit_jax.train import metrics, train_and_evaluate
from vit_jax.train.masked_patches import cell_colours, colour_classes, patch_pixels

PATCH = 4  # pixels, of 16: 16 patches


def small(seed: int, steps: int) -> ConfigDict:
    """The demo's recipe in grey, with smaller patches, and fewer steps."""
    config = digits.get_config()
    config.model.patches.size = (PATCH, PATCH)
    config.pp.channels, config.pp.mean, config.pp.std = 1, (0.5,), (0.5,)
    config.seed, config.total_steps, config.warmup_steps = seed, steps, steps // 10
    config.eval_every = config.checkpoint_every = 0
    return config


def trained(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Trains in a folder, and returns the figures of the last evaluation."""
    train_and_evaluate(config, workdir)
    return [line for line in metrics.read(workdir) if "loss_test" in line][-1]


def test_images(config: ConfigDict) -> np.ndarray:
    """All test images, as the model gets them."""
    _, test = input_pipeline.get_datasets(common.with_defaults(config))
    batches = [batch["image"][np.asarray(batch["mask"]) > 0] for batch in test]
    return np.concatenate([np.asarray(batch) for batch in batches])


def entropies(images: np.ndarray) -> tuple[float, float]:
    """In nats, of a patch's class; and of a patch's class if its place is known."""
    pixels = patch_pixels(jnp.asarray(images) / 2 + 0.5, (PATCH, PATCH))
    classes = np.asarray(colour_classes(cell_colours(pixels, 1)))[..., 0]
    return _entropy(classes), float(np.mean([_entropy(place) for place in classes.T]))


def _entropy(classes: np.ndarray) -> float:
    shares = np.unique(classes, return_counts=True)[1] / classes.size
    return float(-(shares * np.log(shares)).sum())


def masked(seed: int, folder: pathlib.Path, pretraining: int, tuning: int) -> bool:
    """Masked patch prediction, and both ways to a classifier."""
    config = small(seed, pretraining)
    anywhere, placed = entropies(test_images(config))
    config.model = masked_patches.as_predictor(config.model)
    config.objective = "masked_patches"
    found = trained(config, folder / "masked")
    loss, accuracy = found["loss_test"], found["accuracy_test"]
    print(f"seed {seed}: masked patches: loss {loss:.3f}, {accuracy:.1%} right; entropy of the")
    print(f"  targets {anywhere:.3f}, by place {placed:.3f}; ratio {loss / placed:.2f}")
    scratch = trained(small(seed, tuning), folder / "scratch")["accuracy_test"]
    config = small(seed, tuning)
    config.pretrained = str(folder / "masked")
    tuned = trained(config, folder / "tuned")["accuracy_test"]
    print(f"  {tuning} steps: fine-tuned {tuned:.1%}, from scratch {scratch:.1%}", flush=True)
    return loss <= 0.8 * placed and tuned >= scratch


def diverse(seed: int, folder: pathlib.Path, steps: int) -> bool:
    """A classifier with the losses of diverse patches and without."""
    figures: dict[str, tuple[float, float]] = {}
    for name in ("classes", "diverse_patches"):
        config = small(seed, steps)
        config.model = ConfigDict(DIVERSE)
        config.objective = name
        config.diversity.form, config.diversity.cosine = "paper", 1.0
        accuracy = trained(config, folder / name)["accuracy_test"]
        figures[name] = accuracy, last_similarity(folder / name, test_images(config))
    for name, (accuracy, similarity) in figures.items():
        print(f"seed {seed}: {name}: {accuracy:.1%}, similarity {similarity:.3f}", flush=True)
    plain, apart = figures.values()
    return apart[1] <= 0.8 * plain[1] and apart[0] >= plain[0] - 0.01


DIVERSE: dict[str, Any] = {
    "family": "diversepatch",
    "patch_size": PATCH,
    "hidden_size": 96,
    "num_layers": 6,
    "num_heads": 4,
    "mlp_dim": 192,
}


def last_similarity(workdir: pathlib.Path, images: np.ndarray) -> float:
    """How much alike the tokens of the last block are."""
    weights = inference.load_weights(workdir)
    known = weights.model
    model = models.from_config(unscanned(known.config), num_classes=known.num_classes)
    *_, last = similarity_by_depth(model, weights.one_by_one(), jnp.asarray(images)).values()
    return float(last.mean())


HALVES = {
    "masked": functools.partial(masked, pretraining=1_500, tuning=200),
    "diverse": functools.partial(diverse, steps=600),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--only", choices=HALVES)
    words = parser.parse_args()
    good = True
    for seed in words.seeds:
        for name in [words.only] if words.only else HALVES:
            with tempfile.TemporaryDirectory() as folder:
                good &= HALVES[name](seed, pathlib.Path(folder))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

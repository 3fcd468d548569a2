"""Whether a masked autoencoder's encoder is a better beginning than none, on handwritten digits.

`python benchmarks/mae_digits.py [SEED …]`: minutes on two CPU cores. A small encoder is pretrained
without labels on the 1,437 training images, then fine-tuned with the labels of some of them, by the
mean of its patches and with the rates of its layers decaying; and the same classifier is trained
from scratch with the same images for as many steps.

Bar, for each seed: fine-tuned after pretraining it is right more often than from scratch.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from typing import Any

from ml_collections import ConfigDict

from vit_jax.configs import digits
from vit_jax.train import metrics, train_and_evaluate

PATCH = 4  # pixels, of 16: 16 patches, of which 4 are seen
ENCODER: dict[str, Any] = {
    "patch_size": PATCH,
    "hidden_size": 96,
    "num_layers": 4,
    "num_heads": 4,
    "mlp_dim": 192,
}
DECODER = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96}
LABELLED = 200  # images that are learned from, other ones for each seed


def small(seed: int, steps: int) -> ConfigDict:
    """The demo's recipe in grey, with smaller patches, and other steps."""
    config = digits.get_config()
    config.pp.channels, config.pp.mean, config.pp.std = 1, (0.5,), (0.5,)
    config.seed, config.total_steps, config.warmup_steps = seed, steps, steps // 10
    config.eval_every = config.checkpoint_every = 0
    config.progress_every = 100
    return config


def pretraining(seed: int, steps: int) -> ConfigDict:
    config = small(seed, steps)
    config.model = ConfigDict({"family": "mae", **ENCODER, "decoder": DECODER})
    config.objective, config.base_lr = "mae", 2e-3
    config.mae.norm_pixels = False  # most patches of a digit are black, and have no spread
    config.optim_b2 = 0.95
    return config


def tuning(seed: int, steps: int) -> ConfigDict:
    config = small(seed, steps)
    first = LABELLED * (seed % 7)
    config.pp.train = f"train[{first}:{first + LABELLED}]"
    config.model = ConfigDict({"family": "vit_avg", "norm_mean": True, **ENCODER})
    config.batch = 50
    return config


def trained(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Trains in a folder, and returns the figures of the last evaluation."""
    train_and_evaluate(config, workdir)
    return [line for line in metrics.read(workdir) if "loss_test" in line][-1]


def compare(seed: int, folder: pathlib.Path, steps: int, tuning_steps: int) -> bool:
    started = time.perf_counter()
    loss = trained(pretraining(seed, steps), folder / "mae")["loss_test"]
    print(f"seed {seed}: {steps} steps of pretraining: loss of held-out images {loss:.4f}")
    config = tuning(seed, tuning_steps)
    scratch = trained(config, folder / "scratch")["accuracy_test"]
    config = tuning(seed, tuning_steps)
    config.pretrained, config.layer_decay = str(folder / "mae"), 0.75
    tuned = trained(config, folder / "tuned")["accuracy_test"]
    seconds = time.perf_counter() - started
    print(
        f"seed {seed}: {tuning_steps} steps on {LABELLED} labelled images: fine-tuned "
        f"{tuned:.1%}, from scratch {scratch:.1%}; {seconds:.0f} s in all",
        flush=True,
    )
    return tuned > scratch


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--pretraining", type=int, default=400, metavar="STEPS")
    parser.add_argument("--tuning", type=int, default=100, metavar="STEPS")
    words = parser.parse_args()
    good = True
    for seed in words.seeds:
        with tempfile.TemporaryDirectory() as folder:
            good &= compare(seed, pathlib.Path(folder), words.pretraining, words.tuning)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

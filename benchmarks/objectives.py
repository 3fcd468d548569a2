"""Token labelling against plain training at equal steps: `python benchmarks/objectives.py`.

Handwritten digits of 16 × 16 pixels lie anywhere on a canvas of 48 × 48 with two pieces of others,
which are no class of the image. The label maps say where the digit is. The same tiny LV-ViT is
trained by its class token alone, by token labelling, and by token labelling with maps that belong
to the mirrored image, which have the same classes at the wrong places. Each row is the mean test
accuracy over the seeds; all rows of a seed have the same images, order and number of steps.
"""

import argparse
import pathlib
import tempfile

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from vit_jax.configs import common
from vit_jax.families.registry import resolve, shrunk
from vit_jax.input_pipeline import digits
from vit_jax.train import metrics
from vit_jax.train.loop import train_and_evaluate

CANVAS, DIGIT, CELLS = 48, 16, 12
ROWS = {
    "class token alone": {"dense_weight": 0.0},
    "token labelling": {"maps": "maps"},
    "token labelling, MixToken": {"maps": "maps", "mixtoken_alpha": 1.0},
    "maps of the mirrored images": {"maps": "mirrored"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write(root)
        for name, labels in ROWS.items():
            found = [accuracy(root, labels, args.steps, seed) for seed in range(args.seeds)]
            print(f"{name:<30}{100 * np.mean(found):6.1f} %   {np.round(found, 3)}", flush=True)


def write(root: pathlib.Path) -> None:
    """Images in `root/{train,test}`, and label maps of the training images."""
    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    test = set(digits.stratified(labels, digits.TEST_EXAMPLES, 0).tolist())
    rng = np.random.default_rng(0)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        split = "test" if i in test else "train"
        canvas, (top, left) = np.zeros((CANVAS, CANVAS), np.uint8), rng.integers(0, 33, 2)
        for y, x in rng.integers(0, CANVAS - 8, (2, 2)):  # halves of other digits
            piece = images[rng.integers(len(images))].repeat(2, 0).repeat(2, 1)[:8, :8]
            canvas[y : y + 8, x : x + 8] = piece
        canvas[top : top + DIGIT, left : left + DIGIT] = image.repeat(2, 0).repeat(2, 1)
        path = root / split / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(canvas).convert("RGB").save(path)
        if split == "train":
            write_map(root, path, int(label), int(top), int(left))


def write_map(root: pathlib.Path, image: pathlib.Path, label: int, top: int, left: int) -> None:
    """The score 8 for the digit where it is, and 0 elsewhere."""
    side = CANVAS // CELLS
    scores = np.zeros((1, CELLS, CELLS), np.float16)
    scores[
        :, top // side : -(-(top + DIGIT) // side), left // side : -(-(left + DIGIT) // side)
    ] = 8
    for kind, found in (("maps", scores), ("mirrored", scores[..., ::-1])):
        path = root / kind / str(label) / f"{image.stem}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.stack([found, np.full_like(found, label)]))


def accuracy(root: pathlib.Path, labels: dict, steps: int, seed: int) -> float:
    """Top-1 on the test images after training, a share of them."""
    config = common.get_config()
    config.pretrained_dir, config.dataset, config.seed = None, str(root), seed
    config.model = {
        **shrunk(resolve("lvvit_s").config.to_dict()),
        **{"patch_size": 8, "hidden_size": 64, "mlp_dim": 128, "num_heads": 4, "num_layers": 4},
        "drop_path_rate": 0.0,
    }
    config.pp.crop, config.pp.augment, config.pp.area_min = CANVAS, "random_resized_crop", 0.5
    config.batch, config.batch_eval, config.accum_steps = 32, 360, 1
    config.optim, config.optim_dtype, config.base_lr = "adamw", "float32", 1e-3
    config.weight_decay, config.warmup_steps, config.total_steps = 0.05, steps // 10, steps
    config.eval_every = config.checkpoint_every = config.progress_every = 0
    config.token_labels.on = True
    with config.unlocked():
        for field, value in labels.items():
            config.token_labels[field] = str(root / value) if field == "maps" else value
    with tempfile.TemporaryDirectory() as workdir:
        train_and_evaluate(config, workdir)
        return metrics.read(workdir)[-1]["accuracy_test"]


if __name__ == "__main__":
    main()

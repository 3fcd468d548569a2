"""Fine-tuning with few images: adapters (LoRA), all parameters, and the head alone.

A small ViT learns scikit-learn's digits, and is then fine-tuned on digits turned by 90°, of which
there are 20 of each class; the test has the 360 digits of the test split, turned too.

  python benchmarks/lora_digits.py WORKDIR
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

from vit_jax.configs import digits
from vit_jax.input_pipeline import digits as source
from vit_jax.train import metrics, train_and_evaluate

PER_CLASS, BASE_STEPS, STEPS = 20, 800, 200


def write_turned(folder: pathlib.Path) -> None:
    images, labels = source._load()
    test = set(source.stratified(labels, source.TEST_EXAMPLES, source._SPLIT_SEED))
    seen = np.zeros(10, int)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        seen[label] += i not in test
        if i not in test and seen[label] > PER_CLASS:
            continue
        path = folder / ("test" if i in test else "train") / str(label) / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rot90(image)).convert("RGB").save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=pathlib.Path)
    work = parser.parse_args().workdir
    base = digits.get_config()
    base.total_steps, base.eval_every = BASE_STEPS, BASE_STEPS
    train_and_evaluate(base, work / "base")
    write_turned(work / "images")
    head_only = ((r"head/.*", False), (r".*", True))
    rows = {
        "LoRA of query and value, rank 4": ({"lora.rank": 4}, (1e-3, 1e-2)),
        "all parameters": ({}, (3e-4, 1e-3)),
        "the head alone": ({"freeze_rules": head_only}, (1e-3, 1e-2)),
    }
    for row, (changes, rates) in rows.items():
        for rate in rates:
            config = digits.get_config()
            config.update_from_flattened_dict(changes)
            config.dataset, config.pretrained = str(work / "images"), str(work / "base")
            config.pp.crop, config.base_lr, config.warmup_steps = 16, rate, 30
            config.total_steps = config.eval_every = config.checkpoint_every = STEPS
            run = work / f"{row.split()[0]}_{rate:g}"
            train_and_evaluate(config, run)
            accuracy = [
                line["accuracy_test"] for line in metrics.read(run) if "accuracy_test" in line
            ]
            print(f"| {row} | {rate:g} | {accuracy[-1]:.1%} |", flush=True)


if __name__ == "__main__":
    main()

"""`--smoke`: runs any recipe for three tiny steps on generated images, to see that it works."""

import os
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.checkpoint.facts import Model
from vit_jax.configs import common
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import resolve, shrunk

STEPS, SIZE, CLASSES = 3, 64, ("round", "square")


def shrink(config: ConfigDict, workdir: str | os.PathLike) -> ConfigDict:
    """The recipe with a tiny model, generated images and three steps.

    Augmentation, loss, mixing, optimizer, rules, kind of schedule and types stay as they are. A
    recipe that fine-tunes gets a tiny checkpoint to start from, and a recipe that distils gets a
    tiny teacher. Images and checkpoints are written to `workdir/smoke`.
    """
    config = common.with_defaults(config).unlock()
    folder = pathlib.Path(workdir) / "smoke"
    config.model = ConfigDict(shrunk(config.model.to_dict()))
    config.dataset = str(_write_images(folder / "images"))
    config.pp.train, config.pp.test, config.pp.crop = "train", "test", SIZE
    config.pp.resize = SIZE + 8 if config.pp.resize else None
    config.batch = config.batch_eval = 2 * jax.device_count() * max(1, config.accum_steps)
    config.total_steps, config.warmup_steps, config.cooldown_steps = STEPS, 1, 0
    config.eval_every = config.checkpoint_every = STEPS
    config.progress_every = 1
    if config.pretrained_dir:
        config.pretrained_dir = str(folder)
        _write_checkpoint(config, folder)
    if config.distill.kind != "none":
        config.distill.teacher_checkpoint = str(_write_teacher(config.distill.teacher, folder))
        config.distill.teacher = None
    return config.lock()


def _write_checkpoint(config: ConfigDict, folder: pathlib.Path) -> None:
    from vit_jax import checkpoint, models

    model = models.from_config(config.model, num_classes=5)
    images = np.zeros((1, SIZE, SIZE, 3), np.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    name = config.model_or_filename or config.model.model_name
    if "-" not in name:
        (folder / "index.csv").write_text(f"filename,ds,final_val\n{name}-smoke,i21k,1\n")
        name = f"{name}-smoke"
    checkpoint.save(folder / f"{name}.npz", jax.device_get(variables), model=config.model)


def _write_teacher(name: str | None, folder: pathlib.Path) -> pathlib.Path:
    from vit_jax import inference, models

    config = shrunk(resolve(name or "ViT-Ti_16").config.to_dict())
    model = models.from_config(config, num_classes=len(CLASSES))
    variables = model.init(jax.random.key(1), np.zeros((1, SIZE, SIZE, 3), np.float32), train=False)
    known = Model("teacher", config, len(CLASSES), (SIZE, SIZE), Preprocess(SIZE), list(CLASSES))
    weights = inference.Weights(known, {"batch_stats": {}, **jax.device_get(variables)})
    inference.save_weights(folder / "teacher.npz", weights, "official")
    return folder / "teacher.npz"


def _write_images(folder: pathlib.Path) -> pathlib.Path:
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(6):
                image = Image.new("RGB", (96, 80), tuple(rng.integers(0, 100, 3).tolist()))
                left, top = rng.integers(5, 30, 2).tolist()
                draw = ImageDraw.Draw(image)
                shape = draw.ellipse if name == "round" else draw.rectangle
                shape((left, top, left + 40, top + 40), fill=(230, 220, 90))
                image.save(folder / split / name / f"{i}.jpg", quality=95)
    return folder

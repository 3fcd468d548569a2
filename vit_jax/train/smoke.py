"""`--smoke`: runs any recipe for three tiny steps on generated images, to see that it works."""

import os
import pathlib
import tempfile
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from vit_jax import stores
from vit_jax.checkpoint.facts import Model
from vit_jax.configs import common
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import resolve, shrunk

STEPS, SIZE, CLASSES = 3, 64, ("round", "square")
# Two parts of a batch show all that more of them would: their gradients are added up.
MOST_PARTS = 2


def shrink(config: ConfigDict, workdir: str | os.PathLike) -> ConfigDict:
    """The recipe with a tiny model, generated images and three steps.

    Augmentation, loss, mixing, optimizer, rules, kind of schedule and types stay as they are. A
    recipe that fine-tunes gets a tiny checkpoint to start from, one that distils a tiny teacher,
    one that labels patches label maps, and one that learns from texts captions and a vocabulary.
    All of them are written to `workdir/smoke`, or, where the workdir is an address, to a temporary
    folder. No tracker is told.
    """
    config = common.with_defaults(config).unlock()
    if stores.is_address(workdir):  # which a run of tiny steps may have; its images are here
        folder = pathlib.Path(tempfile.mkdtemp(prefix="vit_jax_smoke_"))
    else:
        folder = pathlib.Path(workdir) / "smoke"
    config.model = ConfigDict(shrunk(config.model.to_dict()))
    paired = config.objective == "contrastive"
    images = _write_images(folder / "images", captions=paired)
    config.dataset, config.mixture = str(images), ConfigDict()
    if paired:
        config.text.kind, config.text.vocabulary = "bert", str(_write_vocabulary(folder))
    if config.contrastive.image_tower:
        config.contrastive.image_tower = str(_write_image_tower(config.model.image, folder))
    config.contrastive.text_tower = None
    config.pp.train, config.pp.test, config.pp.crop = "train", "test", SIZE
    config.pp.resize = SIZE + 8 if config.pp.resize else None
    config.accum_steps = min(config.accum_steps, MOST_PARTS)
    config.batch = config.batch_eval = 2 * jax.device_count() * max(1, config.accum_steps)
    config.total_steps, config.warmup_steps, config.cooldown_steps = STEPS, 1, 0
    config.eval_every = config.checkpoint_every = STEPS
    config.progress_every, config.keep_every, config.resume_from = 1, 0, None
    config.trackers = ()
    for entry in config.evals.values():  # The same kinds, on the generated images.
        own = {"dataset", "split", "train_split", "real_labels", "every"}
        for field in own.intersection(entry):
            entry[field] = None
        entry.at = ()
        if "k" in entry:
            entry.k = 1
    if config.pretrained_dir:
        config.pretrained_dir = str(folder)
        _write_checkpoint(config, folder)
    if config.token_labels.maps:
        config.token_labels.maps = str(_write_label_maps(folder / "label_maps", folder / "images"))
    if config.distill.kind != "none":
        config.distill.teacher_checkpoint = str(_write_teacher(config.distill.teacher, folder))
        config.distill.teacher = None
    return config.lock()


def _write_vocabulary(folder: pathlib.Path) -> pathlib.Path:
    words = ("[PAD]", "[UNK]", "[CLS]", "a", "yellow", "thing", *CLASSES)
    (folder / "vocabulary.txt").write_text("\n".join(words))
    return folder / "vocabulary.txt"


def _random_weights(model: nn.Module, seed: int) -> dict[str, Any]:
    """A model's variables, initialised by one program: op by op it takes ten times longer."""
    images = np.zeros((1, SIZE, SIZE, 3), np.float32)
    return jax.device_get(jax.jit(partial(model.init, train=False))(jax.random.key(seed), images))


def _write_image_tower(model: ConfigDict, folder: pathlib.Path) -> pathlib.Path:
    from vit_jax import checkpoint, models

    variables = _random_weights(models.from_config(model, num_classes=5), seed=2)
    checkpoint.save(folder / "image_tower.npz", variables, model=model)
    return folder / "image_tower.npz"


def _write_checkpoint(config: ConfigDict, folder: pathlib.Path) -> None:
    from vit_jax import checkpoint, models

    variables = _random_weights(models.from_config(config.model, num_classes=5), seed=0)
    name = config.model_or_filename or config.model.model_name
    if config.model_or_filename and "-" not in name:
        (folder / "index.csv").write_text(f"filename,ds,final_val\n{name}-smoke,i21k,1\n")
        name = f"{name}-smoke"
    checkpoint.save(folder / f"{name}.npz", variables, model=config.model)


def _write_teacher(name: str | None, folder: pathlib.Path) -> pathlib.Path:
    from vit_jax import inference, models

    config = shrunk(resolve(name or "ViT-Ti_16").config.to_dict())
    variables = _random_weights(models.from_config(config, num_classes=len(CLASSES)), seed=1)
    known = Model("teacher", config, len(CLASSES), (SIZE, SIZE), Preprocess(SIZE), list(CLASSES))
    weights = inference.Weights(known, {"batch_stats": {}, **variables})
    inference.save_weights(folder / "teacher.npz", weights, "official")
    return folder / "teacher.npz"


def _write_label_maps(folder: pathlib.Path, images: pathlib.Path) -> pathlib.Path:
    """Maps that are sure of the image's class in the middle, where the shape is."""
    middle = np.pad(np.full((2, 2), 8.0), 2)
    for path in sorted((images / "train").glob("*/*.jpg")):
        label = CLASSES.index(path.parent.name)
        classes = np.broadcast_to(np.array([label, 1 - label]).reshape(2, 1, 1), (2, 6, 6))
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        file = folder / path.parent.name / f"{path.stem}.npy"
        np.save(file, np.array([[middle, 0 * middle], classes], np.float16))
    return folder


def _write_images(folder: pathlib.Path, captions: bool = False) -> pathlib.Path:
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
                if captions:
                    texts = f"a {name} thing\na yellow thing\n"
                    (folder / split / name / f"{i}.txt").write_text(texts)
    return folder

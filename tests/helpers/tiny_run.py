"""A run that takes seconds: `get_config()` for the command line, `config(...)` for this process."""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vit_jax.configs import common, models
from vit_jax.train import metrics

TIMINGS = (
    "img_sec_core_train",
    "step_seconds",
    "data_wait_seconds",
    "eval_seconds",
    "save_seconds",
    "device_hours",
    "data_wait_max_seconds",
    "data_wait_process",
    "time",
    "run_hours",
    "goodput",
)


def get_config() -> ConfigDict:
    """Dropout, augmentation and shuffling are at work, so that every source of chance is."""
    config = common.get_config()
    config.model = models.get_testing_config()
    config.pretrained_dir = None
    config.pp.crop = 16
    config.batch, config.batch_eval, config.accum_steps = 8, 4, 1
    config.total_steps, config.warmup_steps = 60, 4
    config.base_lr = 0.01
    config.progress_every, config.checkpoint_every, config.eval_every = 1, 5, 7
    config.keep_checkpoints, config.keep_best = 2, "accuracy_test"
    return config


def config(images: pathlib.Path | str, **changes: Any) -> ConfigDict:
    """`mesh__fsdp=2` sets `config.mesh.fsdp`; dropout=False leaves it out, for comparisons.

    With pairs=True the run learns the captions of the images, beside a locked image tower.
    """
    made = get_config()
    made.dataset = str(images)
    dropout = changes.pop("dropout", True)
    if changes.pop("pairs", False):
        learn_pairs(made, pathlib.Path(images) / "vocabulary.txt", dropout)
    elif not dropout:
        made.model.transformer.dropout_rate = 0.0
    made.evals = changes.pop("evals", {})
    made.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return made


def learn_pairs(made: ConfigDict, vocabulary: pathlib.Path, dropout: bool) -> None:
    rate = 0.1 if dropout else 0.0
    sizes = {"hidden_size": 12, "num_layers": 1, "num_heads": 2, "mlp_dim": 8, "vocab_size": 32}
    made.model = {
        "image": made.model.to_dict(),
        "text_model": "bert",
        "text": {**sizes, "max_length": 8, "dropout_rate": rate, "attention_dropout_rate": rate},
        "out_dim": (None, 10),
        "temperature_init": 10.0,
        "bias_init": -2.71,
    }
    made.model.image.transformer.dropout_rate = 0.0
    made.objective = "contrastive"
    made.freeze_rules = ((r"img/.*", True), (r".*", False))
    made.text.update({"kind": "bert", "vocabulary": str(vocabulary), "length": 6})
    made.keep_best = "text_to_image@1_test"


def write_images(
    folder: pathlib.Path, train: int = 11, test: int = 5, captions: bool = False
) -> pathlib.Path:
    """Two classes of noise, one brighter, but not so much that every answer is right.

    Each image may have two captions, which no other image has.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 245, (20, 24, 3)) + 10 * label
                path = folder / split / name / f"{i}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                if captions:
                    path.with_suffix(".txt").write_text(f"a {name} {i}\n{i} {name}\n")
    if captions:
        words = ("[PAD]", "[UNK]", "[CLS]", "a", "cat", "dog", "##0", "##1", *map(str, range(11)))
        (folder / "vocabulary.txt").write_text("\n".join(words))
    return folder


def lines(workdir: pathlib.Path) -> list[dict[str, float]]:
    """`metrics.jsonl` without timings."""
    return [
        {name: value for name, value in line.items() if name not in TIMINGS}
        for line in metrics.read(workdir)
    ]


def losses(workdir: pathlib.Path) -> list[float]:
    return [line["train_loss"] for line in metrics.read(workdir) if "train_loss" in line]


def stored(workdir: pathlib.Path) -> dict[int, dict[str, str]]:
    """For every checkpoint: name of each array -> its type, shape and a hash of its bytes."""
    return {
        int(path.name.rpartition("_")[2]): _stored(path)
        for path in sorted(pathlib.Path(workdir).glob("checkpoint_*"))
        if path.name.rpartition("_")[2].isdigit()
    }


def _stored(path: pathlib.Path) -> dict[str, str]:
    import jax
    import orbax.checkpoint as ocp

    found = {}
    with ocp.PyTreeCheckpointer() as reader:
        for item in ("params", "rest"):
            names = reader.metadata(path / item).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
            tree = reader.restore(path / item, restore_args=as_numpy)
            for name, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
                found[item + jax.tree_util.keystr(name)] = describe(value)
    return found


def files(folder: pathlib.Path) -> dict[pathlib.Path, tuple]:
    """What lies in a folder, at any depth: time of change and bytes."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in sorted(folder.rglob("*"))
    }


def describe(value: Any) -> str:
    value = np.asarray(value)
    return f"{value.dtype}{list(value.shape)} {hashlib.sha256(value.tobytes()).hexdigest()}"


def write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value))

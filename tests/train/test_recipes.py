"""Every file of configs/ runs: three tiny steps on generated images."""

import pathlib

import numpy as np
import pytest
from processes import start, succeed

from vit_jax import cli
from vit_jax.train import metrics, run_info

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ARGUMENTS = {
    "vit": ["b16,cifar10", "r50_b16,cifar100", "mixer_b16,imagenet2012"],
    "augreg": ["R_Ti_16", "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0"],
    "pretrain_augreg": ["s16,medium1"],
    # `deit_distill` and `cait` are `deit` with another model, `simple_vit` is `vit_s16_i1k`.
    "deit": [],
    "vit_s16_i1k": [],
    "deit_distill": ["ti16"],
    "deit3": ["s16"],
    "lvvit": ["s"],
    "sam": ["b16"],
    "lit": ["b16b"],
}
WITHOUT_CLASSES = ("lit",)
# Over four devices, what is left of its convolutions is compiled to loops that take a minute.
ON_ONE_DEVICE = ("vit:r50_b16,cifar100",)
NOT_RECIPES = {"__init__", "common", "models", "inference_time"}
RECIPES = sorted(
    f"{path.stem}:{argument}" if argument else path.stem
    for path in CONFIGS.glob("*.py")
    if path.stem not in NOT_RECIPES
    for argument in ARGUMENTS.get(path.stem, [""])
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_runs(recipe, tmp_path):
    name, _, argument = recipe.partition(":")
    config = f"{CONFIGS / name}.py" + (f":{argument}" if argument else "")
    command = ["train", "--config", config, "--workdir", str(tmp_path), "--smoke"]
    if name == "augreg":
        command.append("--config.accum_steps=1")
    if recipe in ON_ONE_DEVICE:
        succeed(start(["-m", "vit_jax.cli", *command]))
    else:
        assert cli.main(command) == 0
    assert (tmp_path / "checkpoint_3").exists()
    lines = metrics.read(tmp_path)
    losses = [line["train_loss"] for line in lines if "train_loss" in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert [line["examples_test"] for line in lines if "examples_test" in line] == [12]
    classes = [] if name in WITHOUT_CLASSES else ["round", "square"]
    assert run_info.load(tmp_path).class_names == classes

"""`--config`: recipes by name, and what is said of their arguments."""

import pathlib

import pytest

from vit_jax import cli, main, recipes
from vit_jax.configs import models
from vit_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No checkout in sight."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["vit", "vit.py", "configs/vit.py"])
def test_an_installed_recipe_is_found_by_its_name(name, capsys):
    config, _ = main.parse([f"--config={name}:b16,cifar10", "--workdir=x"])
    assert config.model.model_name == "ViT-B_16"
    assert f"recipe: {CONFIGS / 'vit.py'}" in capsys.readouterr().err


def test_two_words_and_changes():
    config, _ = main.parse(["--config", "digits", "--workdir", "x", "--config.batch=7"])
    assert config.batch == 7


def test_a_file_of_that_name_comes_first(tmp_path, capsys):
    recipe = 'from vit_jax.configs import digits\ndef get_config(who="a", *, n=1):\n'
    (tmp_path / "vit").write_text(recipe + "    return digits.get_config()")
    (tmp_path / "vit.py").write_text(recipe + "    return digits.get_config()")
    config, _ = main.parse(["--config=vit.py", "--workdir=x"])
    assert config.dataset == "digits"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("vit", r"expected MODEL,DATASET .* Models: .*b16, .* Datasets: cifar10, cifar100"),
        ("configs/vit.py:", "expected MODEL,DATASET"),
        ("vit:b16", "got 'b16'"),
        ("augreg", "Models: Ti_16, S_16"),
        ("augreg:R_Ti_61", "Did you mean 'R_Ti_16'"),
        ("pretrain_augreg:s16", "unknown level ''. Known: none, light1"),
        ("deit3:l16", "unknown model 'l16'.*Known: s16, b16"),
        ("lvvit:xl", "unknown model 'xl'.*Known: t, s, m, l"),
        ("simple_vit:s32", "Known: s16, b16, l16"),
        ("cait:xxs42", "Did you mean 'xxs24'"),
        ("deit_distill:xx", "Known: ti16, s16, b16"),
        ("digits:b16", "digits.py takes no argument; got 'b16'"),
        ("vti:b16", "no file 'vti'.*Did you mean 'vit'.*Installed: augreg, "),
        ("/nowhere/vit.py", "no file '/nowhere/vit.py'"),
        ("common", "no installed recipe of that name"),
        ("own.py", "own.py needs an argument, --config=own.py:SIZE. `size` is 1 or 2."),
    ],
)
def test_refused(tmp_path, config, message):
    own = '"""Mine."""\ndef get_config(size):\n    """`size` is\n    1 or 2."""\n'
    (tmp_path / "own.py").write_text(own)
    with pytest.raises(UserError, match=message):
        main.parse([f"--config={config}", "--workdir=x"])


def test_files_that_cannot_be_understood_are_left_to_their_loader(tmp_path):
    for text in ("def get_config(:", "get_config = len"):
        (tmp_path / "own.py").write_text(text)
        assert recipes.find("own.py") == "own.py"
    assert recipes.find("gs://bucket/own.py:a") == "gs://bucket/own.py:a"


def test_the_command(capsys):
    assert cli.main(["train", "--config=configs/vit.py", "--workdir=x"]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert all(name in error for name in models.short_names())
    assert "Traceback" not in error

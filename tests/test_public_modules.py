"""What `vit_jax` offers: its modules, listed and loaded when they are first used."""

import subprocess
import sys

import pytest

import vit_jax


def test_dir_lists_modules_that_all_load():
    assert {"checkpoint", "configs", "models", "parity", "train", "utils"} <= set(dir(vit_jax))
    for name in vit_jax.__all__:
        module = getattr(vit_jax, name)
        assert module.__name__ == f"vit_jax.{name}"
        assert module.__doc__ or name == "layers"
    with pytest.raises(AttributeError, match="'modles'"):
        vit_jax.modles  # noqa: B018


def test_a_module_is_there_without_an_import_of_its_own():
    code = (
        "import sys, vit_jax; listed = dir(vit_jax); before = set(sys.modules)\n"
        "assert 'models' in listed and 'jax' not in before and 'vit_jax.models' not in before\n"
        "vit_jax.models.get_model"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""`vit-jax plan` on this machine's devices, and what it says of bad input."""

import json

import pytest

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.plan import topology
from vit_jax.plan.compiling import DoesNotFit, _out_of_memory

RECIPE = """
from vit_jax.configs import common, models
def get_config():
    config = common.get_config()
    config.model = models.get_testing_config()
    config.pp.crop, config.batch, config.batch_eval, config.accum_steps = 32, 8, 8, 1
    config.total_steps = 1000
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return str(path)


def test_the_report_of_this_machine(recipe, tmp_path, capsys):
    chart = tmp_path / "plan.svg"
    arguments = ["plan", "--config", recipe, "--set", "mesh.fsdp=2", "--classes", "3", "--json"]
    assert cli.main([*arguments, "--chart", str(chart)]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["mesh"] == {"data": 2, "fsdp": 2, "model": 1}
    assert plan["batch"] == 8
    assert plan["hbm_traffic"] > plan["memory"]["arguments"] > 0
    assert plan["collectives"]["all-reduce"]["count"] > 0
    assert plan["fits"] is None
    assert "matrix products" in plan["classes"]
    assert b"<svg" in chart.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "batch"], "FIELD=VALUE"),
        (["--set", "bacth=8"], "batch"),
        (["--set", "modle.scan=True"], "modle"),
        (["--set", "batch=7"], "multiple"),
        (["--set", "attend=cudnn"], "GPU"),
        (["--classes", "0"], "--classes"),
        (["--chart", "plan.pdf"], ".svg"),
        (["--chart", "nowhere/plan.svg"], "nowhere"),
        (["--topology", "v9:2x2"], "Known: v4: 2x2x1"),
        (["--topology", "v5e"], "v5e: 2x2"),
        (["--fit", "chips"], "--topology"),
    ],
)
def test_bad_input_is_one_message(recipe, arguments, message, capsys):
    assert cli.main(["plan", "--config", recipe, *arguments]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    with pytest.raises(UserError, match="vit-jax\\[tpu\\]"):
        topology.devices("v5e:4x4")


def test_what_does_not_fit_is_said_in_bytes():
    words = RuntimeError("RESOURCE_EXHAUSTED: Used 20.25G of 15.75G hbm. Exceeded by 4.50G.")
    error = _out_of_memory(words, "v5e:4x4")
    assert isinstance(error, DoesNotFit)
    assert "4.50 GiB too much" in str(error)
    assert error.needed == 20.25 * 2**30

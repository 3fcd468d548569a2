"""`vit-jax plan` on this machine's devices, and what it says of bad input."""

import json

import pytest

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.plan import compiling, topology
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
    settings = ["--set", "mesh.fsdp=2", "--set", "optim=muon", "--set", "optim_dtype=float32"]
    arguments = ["plan", "--config", recipe, *settings, "--classes", "3", "--json"]
    assert cli.main([*arguments, "--chart", str(chart)]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["mesh"] == {"data": 2, "fsdp": 2, "model": 1}
    assert plan["batch"] == 8
    assert plan["hbm_traffic"] > plan["memory"]["arguments"] > 0
    assert plan["collectives"]["all-reduce"]["count"] > 0
    # AdamW's two moments of the embedding, which fsdp halves, and little more.
    embedding = 16 * 16 * 3 * 10
    assert 4 * embedding < plan["optimizer"]["bytes"] < 5 * embedding
    assert plan["optimizer"]["flops"] > 0
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


# The TPU compiler's own words (libtpu 0.0.42): what it says of the whole, and what it sees early.
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.25G of 15.75G hbm. Exceeded hbm capacity by 4.50G.",
            "a device needs 21.74 GB and has 16.91, 4.83 GB too much",
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (18.97G) exceeds available HBM (15.75G).",
            "a device needs at least 20.37 GB and has 16.91, at least 3.46 GB too much",
        ),
    ],
)
def test_what_the_compiler_refuses_is_said_in_bytes(words, said):
    error = _out_of_memory(RuntimeError(words), "v5e:4x4")
    assert isinstance(error, DoesNotFit)
    assert said in str(error)
    assert "--fit" in str(error)
    assert error.available == 15.75 * 2**30


def test_other_failures_of_the_compiler_are_one_line():
    error = _out_of_memory(RuntimeError("INTERNAL: Mosaic failed\n  at line 3"), "v5e:4x4")
    assert not isinstance(error, DoesNotFit)
    assert str(error) == "the compiler failed: INTERNAL: Mosaic failed"


def test_a_compiled_step_that_is_too_large_is_shown_and_refused(recipe, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "limit", lambda device: 1000)
    assert cli.main(["plan", "--config", recipe, "--classes", "3"]) == cli.BAD_INPUT
    out, err = capsys.readouterr()
    assert "DOES NOT FIT" in out
    assert "GB too much" in err
    assert err.count("\n") == 1

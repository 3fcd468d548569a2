"""Signals while a compiler works that never looks up, and that Python cannot wake."""

import signal

import processes
import pytest

# A lock of the C library, taken twice: no signal ends the wait for it, as none ends a compiler's.
SCRIPT = """
import ctypes, sys
from vit_jax import cli
from vit_jax.plan import compiling

def lower(config, devices, num_classes):
    compiling.build(config, compiling.make_mesh(config.mesh, devices), num_classes)
    class Step:
        lowered = type("", (), {"compile": staticmethod(never)})
        engine = type("", (), {"mesh": compiling.make_mesh(config.mesh, devices)})
    return Step

def never():
    sys.__stdout__.write("compiling\\n"), sys.__stdout__.flush()
    lock, libc = (ctypes.c_char * 64)(), ctypes.CDLL(None)
    while True:
        libc.pthread_mutex_lock(lock)

compiling.lower = lower
compiling.limit = lambda device: 10**9
raise SystemExit(cli.main(sys.argv[1:]))
"""
RECIPE = """
from vit_jax.configs import common, models
def get_config():
    config = common.get_config()
    config.model = models.get_testing_config()
    config.pp.crop, config.batch, config.batch_eval, config.accum_steps = 32, 8, 8, 1
    return config
"""


@pytest.mark.parametrize("fit", [[], ["--fit", "batch"]])
@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (signal.SIGINT, 130, "vit-jax: interrupted\n"),
        (signal.SIGTERM, 143, "vit-jax: stopped by SIGTERM\n"),
    ],
)
def test_a_signal_ends_it_at_once(sent, status, said, fit, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    chart = tmp_path / "plan.svg"
    words = ["plan", "--config", tmp_path / "recipe.py", "--chart", chart, *fit]
    process = processes.start(["-c", SCRIPT, *words], devices=1)
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith("compiling\n"):
            break
    process.send_signal(sent)
    ((code, _, errors),) = processes.finish(process, limit=60)
    assert (code, errors) == (status, said)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["recipe.py"]

"""Strict JAX and several devices for every test, set before JAX starts."""

import gc
import importlib.metadata
import os
import pathlib
import signal
import sys

# Where the TPU compiler is installed, for `vit-jax plan`, JAX would look for a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
# What is compiled here runs once, for milliseconds, so that compiling is most of the suite's time:
# without LLVM's optimisation, with XLA's older emitter and in one piece it takes a quarter of it.
_COMPILED_ONCE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# XLA ends the process at a flag that it does not know, as later versions do not know this one.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    _COMPILED_ONCE += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _COMPILED_ONCE)
# Many tests compile the same tiny model: the second one, and every subprocess, finds it here.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Several workers share the cores, and PyTorch's threads would wait for each other in loops.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tracing makes millions of small objects that live on, and JAX adds work of its own to every
# collection of garbage, of which there would be one for every 700 of them.
gc.set_threshold(100_000, 50, 100)

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that: those
# that tests interrupt would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

# What is computed here is float32 from end to end: no type is changed by itself. The families in
# tests/zoo compute in float64, where Flax's norms promote: tests/models/test_promotion.py has them.
_STRICT = {"layers", "models"}

# Minutes each on a slow machine. A worker gets whole files: one of these among the last would keep
# it busy while the others have nothing to do.
_LONGEST = (
    *("devices/test_distributed.py", "train/test_recipes.py", "train/test_resume.py"),
    *("zoo/test_battery.py", "zoo/test_files.py", "zoo/test_official.py", "zoo/test_training.py"),
    *("plan/test_fit.py", "train/test_health.py", "train/test_loop.py"),
)


def pytest_collection_modifyitems(items):
    """The longest files come first, the others in their order."""
    items.sort(key=lambda item: not str(item.path).endswith(_LONGEST))


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Implicit promotion of types is an error, except in tests marked `promotes`."""
    folder = request.path.relative_to(pathlib.Path(__file__).parent).parts[0]
    if folder not in _STRICT or request.node.get_closest_marker("promotes"):
        yield
        return
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True, scope="module")
def forgets_what_is_compiled():
    """A worker that keeps what every file compiled takes gigabytes."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()

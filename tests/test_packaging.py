"""What is installed, what an import costs, and what may be absent."""

import json
import pathlib
import pkgutil
import subprocess
import sys
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Makes packages absent: their finder says so before any other can find them.
HIDE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {hidden!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
"""


def python(code: str, cwd: pathlib.Path = ROOT, executable: str = sys.executable) -> str:
    done = subprocess.run([executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> list[str]:
    import vit_jax

    found = [m.name for m in pkgutil.walk_packages(vit_jax.__path__, "vit_jax.")]
    configs = [f"vit_jax.configs.{p.stem}" for p in (ROOT / "configs").glob("[a-z]*.py")]
    return sorted({*found, *configs})


def test_every_module_imports_without_tensorflow_torch_and_scikit_learn():
    names = modules()
    assert {"vit_jax.models.vit", "vit_jax.configs.vit", "vit_jax.train.loop"} <= set(names)
    hidden = ("tensorflow", "torch", "timm", "transformers", "sklearn")
    python(
        HIDE.format(hidden=hidden)
        + f"import importlib\nfor m in {names}: importlib.import_module(m)"
    )


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import vit_jax", ["jax", "flax", "numpy", "torch"]),
        ("import vit_jax.checkpoint", ["jax", "flax", "torch"]),
        ("import vit_jax.families.registry", ["jax", "flax", "torch"]),
        ("import vit_jax.input_pipeline", ["jax", "tensorflow_datasets", "grain", "cv2"]),
        ("import vit_jax.train", ["jax", "flax", "optax", "orbax"]),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement, absent):
    loaded = json.loads(
        python(f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))")
    )
    assert not set(absent) & set(loaded)


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory) -> str:
    """An environment that has the wheel, and the dependencies of this one but not the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*build, "-w", folder, "."], check=True, cwd=ROOT, capture_output=True)
    (wheel,) = folder.glob("vit_jax-*.whl")
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    import zipfile

    zipfile.ZipFile(wheel).extractall(site)
    # The dependencies come from here; what leads to the checkout (editable hooks) does not.
    dependencies = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "sitecustomize.py").write_text(f"import sys\nsys.path.append({dependencies!r})\n")
    return str(folder / "venv" / "bin" / "python")


def test_an_installed_wheel_has_its_configs_and_data(wheel_python, tmp_path):
    out = python(
        "import vit_jax, vit_jax.configs\n"
        "from vit_jax.configs import models, common, vit\n"
        "from vit_jax.class_names import class_names\n"
        "from vit_jax.families import sizes\n"
        "print(vit_jax.__file__, vit_jax.configs.__file__, sep='\\n')\n"
        "print(vit.get_config('b16,cifar10').model.model_name, class_names(1000)[0], "
        "len(sizes.recorded()) >= 23, common.get_config().base_lr)",
        cwd=tmp_path,
        executable=wheel_python,
    )
    package, configs, facts = out.splitlines()
    site = str(pathlib.Path(wheel_python).parents[1] / "lib")
    assert package.startswith(site)
    assert configs.startswith(site)
    assert facts == "ViT-B_16 tench, Tinca tinca True 0.03"


def test_the_wheel_holds_every_module(wheel_python):
    site = next((pathlib.Path(wheel_python).parents[1] / "lib").glob("python*/site-packages"))
    installed = {path.relative_to(site).as_posix() for path in site.glob("vit_jax/**/*.py")}
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("vit_jax/**/*.py")}
    recipes = {f"vit_jax/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/*.py")}
    assert installed == modules | recipes


def test_the_wheel_holds_nothing_that_is_not_the_package(wheel_python):
    site = next((pathlib.Path(wheel_python).parents[1] / "lib").glob("python*/site-packages"))
    (info,) = site.glob("vit_jax-*.dist-info")
    top = {line.split(",")[0].split("/")[0] for line in (info / "RECORD").read_text().splitlines()}
    assert top == {"vit_jax", info.name}


def test_the_checkouts_configs_run_by_path(tmp_path):
    """The original's own command line: a file of the checkout with an argument, and overrides."""
    command = [
        sys.executable, "-m", "vit_jax.main", "--config=configs/vit.py:b16,cifar10",
        f"--workdir={tmp_path}", f"--config.pretrained_dir={tmp_path}", "--config.batch=8",
        "--config.accum_steps=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(f"vit_jax.main: error: no checkpoint {tmp_path}/ViT-B_16.npz")
    done = subprocess.run(
        [*command, "--config.batchsize=3"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "batch" in done.stderr
    assert "Traceback" not in done.stderr

"""The ahead-of-time TPU table of RESULTS.md: B/16 on v5e:4x4, and L, H and g on 256 chips.

    python benchmarks/tpu_plan.py [ROW …]      # all rows take half an hour and more; needs libtpu

Each row is one `vit-jax plan`, which is printed before its figures.
"""

import contextlib
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator

CONFIG = """
from vit_jax.configs import common, models

def get_config(model="b16"):
    config = common.get_config()
    config.model = models.by_short_name(model)
    config.model.unlock().transformer.dropout_rate = 0.0
    config.pp.crop, config.pretrained_dir = 224, None
    config.optim, config.optim_dtype, config.weight_decay = "adamw", "float32", 0.1
    config.total_steps, config.accum_steps = 10_000, 1
    config.batch = config.batch_eval = 1024
    config.dtype = "bfloat16"
    return config
"""
SCAN = {"model.transformer.scan": True, "model.transformer.remat": True}
POD = {**SCAN, "batch": 4096, "optim_dtype": "bfloat16", "mesh.fsdp": 128}
# Name -> model, topology, what differs.
ROWS = {
    "original-float32": ("b16", "v5e:4x4", {"dtype": "float32", "attend": "xla"}),
    "bf16-xla": ("b16", "v5e:4x4", {"attend": "xla"}),
    "bf16": ("b16", "v5e:4x4", {}),
    "bf16-fsdp": ("b16", "v5e:4x4", {"mesh.fsdp": 16}),
    "bf16-fsdp-parts": ("b16", "v5e:4x4", {"mesh.fsdp": 16, "gather_whole": False}),
    "bf16-xla-scan-remat": ("b16", "v5e:4x4", {**SCAN, "attend": "xla"}),
    "bf16-scan-remat": ("b16", "v5e:4x4", SCAN),
    **{
        f"{model}-{chip}": (model, f"{chip}:16x16", POD)
        for chip in ("v5e", "v6e")
        for model in ("l16", "h14", "g14")
    },
}


def main() -> None:
    with config_file() as config:
        for name in sys.argv[1:] or ROWS:
            print(row(name, config), flush=True)


@contextlib.contextmanager
def config_file() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "config.py"
        config.write_text(CONFIG)
        yield config


def command_of(name: str, config: pathlib.Path, **more: object) -> list[str]:
    """The `plan` command of a row, with these settings in addition."""
    model, topology, changes = ROWS[name]
    command = ["plan", "--config", f"{config}:{model}", "--topology", topology, "--json"]
    for field, value in {**changes, **more}.items():
        command += ["--set", f"{field}={value}"]
    return command


def row(name: str, config: pathlib.Path) -> str:
    command = command_of(name, config)
    print(shlex.join(["vit-jax", *command]), flush=True)
    program = [sys.executable, "-m", "vit_jax.cli"]
    done = subprocess.run([*program, *command], capture_output=True, text=True, check=False)
    if not done.stdout:
        return f"{name}: {done.stderr.strip()}"
    plan = json.loads(done.stdout)
    times = ", ".join(
        f"{limit} {1e3 * seconds:.1f} ms" for limit, seconds in plan["seconds"].items()
    )
    memory = {name: f"{size / 1e9:.2f} GB" for name, size in plan["memory"].items()}
    return (
        f"{name}: HBM traffic {plan['hbm_traffic'] / 1e9:.2f} GB, temporaries "
        f"{memory['temporaries']}, total {memory['total']}, "
        f"{times}, compiled in {plan['compile_seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()

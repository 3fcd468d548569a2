"""What a start of a run is made of: code, packages, devices and settings of the compiler."""

import contextlib
import datetime
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import vit_jax
from vit_jax.masking import masked_text, masked_words

# Packages that change what a run computes; those that are not installed are left out.
_PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "opencv-python-headless",
    "pillow",
)
_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_SECONDS = 10.0  # for one question to git, which may lie on a slow file system


def start(step: int, changed: Mapping[str, Any], mesh: Any) -> dict[str, Any]:
    """The facts of a start that happens now, ready for JSON.

    Args:
      step: The number of updates done.
      changed: The fields of the config that differ from the start before, with both values.
      mesh: The mesh of the run.
    """
    devices = mesh.devices.flat
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "step": step,
        "command": masked_words(sys.argv),
        "changed": dict(changed),
        "git": repositories(pathlib.Path(vit_jax.__file__).parent, pathlib.Path()),
        "versions": versions(),
        "devices": {"kind": devices[0].device_kind, "count": mesh.size},
        "runtime": devices[0].client.platform_version.strip().splitlines()[0],
        "hosts": len({device.process_index for device in devices}),
        "mesh": dict(mesh.shape),
        "environment": {k: masked_text(os.environ[k]) for k in _ENVIRONMENT if k in os.environ},
    }


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of the packages that the results depend on."""
    found = {"vit-jax": vit_jax.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def repositories(package: pathlib.Path, folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The commit of each git repository that code comes from, by the repository's folder.

    A repository is that of `package` if git tracks the package's files, so that the repository of
    a project in which a virtual environment lies is not taken for the package's; and that of
    `folder`, where a run's own recipe usually lies. `dirty` says whether tracked files differ from
    the commit. Without git, or outside of any repository, the result is empty.
    """
    found = {}
    for place, file in ((package, "__init__.py"), (folder, None)):
        if file and _git(place, "ls-files", "--error-unmatch", file) is None:
            continue
        root, commit = (_git(place, "rev-parse", word) for word in ("--show-toplevel", "HEAD"))
        if root and commit and root not in found:
            status = _git(place, "status", "--porcelain", "--untracked-files=no")
            found[root] = {"commit": commit, "dirty": None if status is None else bool(status)}
    return found


def _git(folder: pathlib.Path, *words: str) -> str | None:
    """What git says; None if it fails, takes too long or is not installed."""
    # What a hook of git sets would point at the repository of the hook.
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

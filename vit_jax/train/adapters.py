"""The adapters of a run as a small file of their own, and merging them into their base again.

The file is safetensors: 'lora_a' and 'lora_b' of each adapted kernel, and every other tensor of the
run that differs from the checkpoint that it started from, such as the head. Its metadata tells the
model, the base, and a hash of what is taken from the base.
"""

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vit_jax import __version__
from vit_jax.checkpoint import recorded
from vit_jax.checkpoint.files.fetch import fetch
from vit_jax.checkpoint.files.formats import open_archive, write_safetensors
from vit_jax.checkpoint.source import open_source, read_all
from vit_jax.checkpoint.stacked import unstack_blocks
from vit_jax.configs import common
from vit_jax.errors import UserError, some
from vit_jax.train import checkpointing, lora, run_info
from vit_jax.train.pretrained import find_pretrained
from vit_jax.tree import arrays

_ABOUT = "vit_jax_lora"
_FIELDS = {"base": str, "sha256": str, "scale": float, "dropped": list}


def write(run: str | os.PathLike, dst: str | os.PathLike, step: int | None = None) -> int:
    """Writes the adapters of a run, and returns the number of parameters in the file.

    Args:
      run: The workdir of a run with `config.lora.rank`.
      dst: A safetensors file, which appears whole or not at all.
      step: The step of the checkpoint; None for the newest.

    Raises:
      UserError: for a run without adapters or without a base, and for a base that is missing or is
        not the one that the run started from.
    """
    config = common.with_defaults(ConfigDict(run_info.load(run).config))
    if not config.lora.rank:
        raise UserError(f"{run} trained no adapters: its config.lora.rank is 0")
    if (found := find_pretrained(config)) is None:
        raise UserError(f"{run} started from no checkpoint, so that its adapters have no base")
    with open_source(run) as source:
        model = source.facts.model()
    base = _read(found)
    raw = arrays(unstack_blocks(checkpointing.load_params(run, step, trained=True)))
    adapters = lora.only(raw)
    kept = {n for n, x in raw.items() if n in base and _same(base[n], x)}
    if wrong := [n for n in _kernels(adapters) if n not in kept]:
        raise UserError(
            f"{found} is not the checkpoint that {run} started from: {some(wrong)} differ"
        )
    about = {
        "base": str(config.pretrained or found),
        "sha256": _hash({n: base[n].astype(raw[n].dtype) for n in kept}),
        "scale": float(lora.scale(config) or 0.0),
        "dropped": sorted(base.keys() - raw.keys()),
        "rank": config.lora.rank,
        "alpha": config.lora.alpha,
        "targets": [list(rule) for rule in config.lora.targets],
    }
    tensors = {n: x for n, x in raw.items() if n not in kept}
    metadata = {recorded.OURS: json.dumps(model.metadata()), _ABOUT: json.dumps(about)}
    write_safetensors(dst, tensors, metadata)
    return sum(x.size for x in tensors.values())


@contextmanager
def merged(path: str | os.PathLike, base: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary checkpoint of the merged model, which `convert` reads.

    Args:
      path: A file that `write` wrote.
      base: The checkpoint that its run started from, of any format.

    Raises:
      UserError: for a file without adapters, or another base.
    """
    where = fetch(path)
    if not where.is_file():
        raise UserError(f"no such file {str(path)!r}; expected adapters that --to lora wrote")
    with open_source(base) as source:
        history = source.facts.history
    with open_archive(where) as archive:
        about = _about(path, archive.metadata)
        theirs = {name: archive[name] for name in archive}
        ours = archive.metadata.get(recorded.OURS, "")
    adapters = lora.only(theirs)
    own = {n: x for n, x in theirs.items() if n not in adapters}
    taken = {n: x for n, x in _read(base).items() if n not in own and n not in about["dropped"]}
    kernels = _kernels(adapters)
    if missing := [n for n in kernels if n not in taken]:
        raise UserError(f"{base} is not the base of {path}: it has no {some(missing)}")
    dtype = next(iter(adapters.values())).dtype
    taken = {n: x.astype(dtype) for n, x in taken.items()}
    if _hash(taken) != about["sha256"]:
        raise UserError(
            f"{base} is not the base of {path}, which was trained on {about['base']!r}: their "
            "tensors differ"
        )
    for name, (a, b) in kernels.items():
        product = adapters[a].astype(np.float64) @ adapters[b].astype(np.float64)
        kernel = taken[name] + about["scale"] * product.reshape(taken[name].shape)
        taken[name] = kernel.astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder) / "merged.safetensors"
        history = [*history, _record(where, base)]
        metadata = {recorded.OURS: ours, recorded.HISTORY: json.dumps(history)}
        write_safetensors(whole, {**taken, **own}, metadata)
        yield whole


def _record(adapters: pathlib.Path, base: str | os.PathLike) -> dict[str, Any]:
    """What the history of the merged weights says of the merge."""
    return {
        "tool": f"vit-jax {__version__}",
        "source": {
            "file": adapters.name,
            "sha256": hashlib.sha256(adapters.read_bytes()).hexdigest(),
            "format": "safetensors",
            "layout": "adapters",
        },
        "to": "linen",
        "steps": [f"merged into {os.fspath(base)}"],
        "notes": [],
    }


def _about(path: str | os.PathLike, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        about = json.loads(metadata.get(_ABOUT, "null"))
        if all(isinstance(about[name], kind) for name, kind in _FIELDS.items()):
            return about
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{str(path)!r} holds no adapters; expected a file that --to lora wrote")


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    with open_source(path) as source:
        source.facts.require_model()
        return read_all(source)


def _kernels(adapters: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The name of each adapted kernel -> the names of its two adapters."""
    modules = [name.rpartition("/")[0] for name in adapters if name.endswith(lora.A)]
    return {f"{m}/kernel": (f"{m}/{lora.A}", f"{m}/{lora.B}") for m in modules}


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one.astype(other.dtype), other)


def _hash(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(x.tobytes())
    return digest.hexdigest()

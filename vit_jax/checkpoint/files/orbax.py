"""Orbax directories of parameters: one step of a run, or a tree on its own.

A step of ours has the items 'params' and 'rest'; the original's has a tuple (parameters,
optimizer, step), whose names begin with `0/`, `1/` and `2`. JAX comes with Orbax, which is
imported when such a directory is opened.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.checkpoint.files.archive import (
    BFLOAT16,
    Archive,
    Spec,
    reading,
    replacing_directory,
    to_numpy,
)
from vit_jax.checkpoint.files.writing import contiguous
from vit_jax.errors import UserError
from vit_jax.tree import unflatten

METADATA = "vit_jax.json"  # ours, beside Orbax's files: what the directory says of its tensors
RUN = "run.json"  # what a run of ours says of itself, beside its steps
_TREE = "_METADATA"  # Orbax's own, in the directory of every tree
STEP_FILE = "_CHECKPOINT_METADATA"  # in that of every step
_LEGACY = "checkpoint"  # in its place before 2024
TREE_FILES = (_TREE, _LEGACY)
_DEFAULT_ITEM = "default"
STEP = re.compile(r"(?:.*_)?(\d+)")
# A directory whose arrays claim more than both is a bomb, not a checkpoint.
_MAX_RATIO, _MAX_UNPACKED = 100, 4 << 30


def is_orbax(folder: pathlib.Path) -> bool:
    """Whether this is a tree of Orbax's, or a step with such trees for its items."""
    return _is_tree(folder) or bool(_items(folder))


def newest_step(workdir: pathlib.Path) -> pathlib.Path | None:
    """The checkpoint of a run with the highest number, a directory or a Flax file; None if none.

    Half-written ones have other names.
    """
    steps = {
        int(m[1]): entry
        for entry in workdir.iterdir()
        if (m := STEP.fullmatch(entry.name)) and (is_orbax(entry) or _is_flax(entry))
    }
    return steps[max(steps)] if steps else None


def _is_flax(entry: pathlib.Path) -> bool:
    return entry.is_file() and entry.name.startswith("checkpoint_")


def _is_tree(folder: pathlib.Path) -> bool:
    return any((folder / name).is_file() for name in TREE_FILES)


def _items(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if not (folder / STEP_FILE).is_file():
        return {}
    trees = (entry for entry in sorted(folder.iterdir()) if _is_tree(entry))
    return {tree.name: tree for tree in trees}


class OrbaxDir(Archive):
    """Tensors are read a branch of the tree at a time: an optimizer's stay on the disk."""

    format = "orbax"

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        self._trees: dict[str, _Tree] = {}
        with reading(self.path, self.format):
            items = {"": self.path} if _is_tree(self.path) else _items(self.path)
            for item, folder in items.items():
                prefix = f"{item}/" if item not in ("", _DEFAULT_ITEM) else ""
                tree = _Tree(folder.absolute())
                for name, spec in tree.specs.items():
                    self.specs[prefix + name] = spec
                    self._trees[prefix + name] = tree
            self._refuse_bombs()
            self.metadata = _metadata(self.path)

    def read(self, name: str) -> np.ndarray:
        tree = self._trees[name]
        own_name = name if name in tree.specs else name.partition("/")[2]
        return tree.read(own_name)

    def close(self) -> None:
        self._trees.clear()

    def _refuse_bombs(self) -> None:
        stored = sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())
        claimed = sum(spec.nbytes for spec in self.specs.values())
        if claimed > max(_MAX_UNPACKED, _MAX_RATIO * stored):
            raise UserError(
                f"{str(self.path)!r} is refused: its {stored} bytes claim to unpack to {claimed}"
            )


# Bytes of a tree that is read at once: each reading of a branch takes a tenth of a second.
_SMALL = 16 * 2**20


class _Tree:
    """One tree of Orbax's, nested lists and dicts, under '/'-joined names."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._read: dict[str, np.ndarray] = {}
        if (folder / _TREE).is_file():
            self._structure = _handler().metadata(_path(folder)).tree
            leaves = _flat(self._structure)
            self.specs = {
                name: Spec(tuple(leaf.shape), np.dtype(leaf.dtype))
                for name, leaf in leaves.items()
                if getattr(leaf, "dtype", None) is not None
            }
        else:  # nothing but the arrays tells their shapes
            restored = _flat(_handler().restore(_path(folder)))
            self._read = {n: to_numpy(x) for n, x in restored.items() if hasattr(x, "dtype")}
            self.specs = {n: Spec(x.shape, x.dtype) for n, x in self._read.items()}
        self._is_small = sum(spec.nbytes for spec in self.specs.values()) <= _SMALL
        for name, spec in self.specs.items():
            if spec.dtype != BFLOAT16 and spec.dtype.kind not in "fiub":
                raise UserError(f"{name!r} has dtype {spec.dtype}; expected numbers")

    def read(self, name: str) -> np.ndarray:
        if name not in self._read:
            self._read |= self._branch(name.partition("/")[0])
        x, spec = self._read[name], self.specs[name]
        if (x.shape, x.dtype) != tuple(spec):
            raise UserError(f"{name!r} was announced as {spec}, is {x.shape} {x.dtype}")
        return x

    def _branch(self, branch: str) -> dict[str, np.ndarray]:
        """The tensors of one branch of the tree; all tensors where there is little to read."""
        import jax
        import orbax.checkpoint as ocp

        def wanted(path: Any, leaf: Any) -> Any:
            inside = self._is_small or _key(path[0]) == branch
            inside = inside and "/".join(map(_key, path)) in self.specs
            return leaf if inside else ocp.PLACEHOLDER

        item = jax.tree_util.tree_map_with_path(wanted, self._structure)
        as_stored = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=as_stored)
        restored = _flat(_handler().restore(_path(self._folder), args=args))
        return {n: np.asarray(x) for n, x in restored.items() if x is not ocp.PLACEHOLDER}


def _path(folder: pathlib.Path) -> Any:
    """What Orbax takes for a path."""
    from etils import epath  # a sixth of what importing all readers would cost

    return epath.Path(folder)


def _handler() -> Any:
    # Not a checkpointer, which warns of an item that lacks what only a step has.
    import orbax.checkpoint as ocp

    return ocp.PyTreeCheckpointHandler()


def _flat(tree: Any) -> dict[str, Any]:
    import jax

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(map(_key, path)): leaf for path, leaf in leaves}


def _key(entry: Any) -> str:
    """A step of JAX's path through a tree, as a name."""
    return str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))


def _metadata(folder: pathlib.Path) -> dict[str, str]:
    """Text stored beside a tree; for a step of a run of ours, what the run says of its model."""
    if (folder / METADATA).is_file():
        fields = json.loads((folder / METADATA).read_text())
        if not isinstance(fields, dict):
            raise UserError(f"{METADATA} holds no JSON object")
        return {str(k): str(v) for k, v in fields.items()}
    if not (folder.parent / RUN).is_file():
        return {}
    run = json.loads((folder.parent / RUN).read_text())
    parts = ("model", "preprocess")
    if not isinstance(run, dict) or not all(isinstance(run.get(part), dict) for part in parts):
        raise UserError(f"{str(folder.parent / RUN)!r} describes no run")
    model = run["model"]
    described = {
        "name": model.get("model_name") or folder.parent.name,
        "config": model,
        "preprocess": run["preprocess"],
        "class_names": run["class_names"],
        "image_size": run["preprocess"]["size"],
    }
    text = run.get("config", {}).get("text") or {}
    if text.get("kind"):  # it was given, for a model that takes texts
        described["text"] = text
    return {"vit_jax": json.dumps(described)}


def write_orbax(
    path: str | os.PathLike,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a nested tree of '/'-joined names, which Orbax restores as it is.

    Args:
      path: Replaced as a whole if it is such a directory, else it must not exist.
      tensors: By name; all of them are in memory at once, as Orbax wants it.
      metadata: Text for a JSON file of its own.

    Raises:
      UserError: when nothing can be written there.
    """
    import orbax.checkpoint as ocp

    place = stores.path(path)
    if place.exists() and not (place.is_dir() and _is_tree(place)):
        raise UserError(f"{str(place)!r} exists and is no Orbax directory; it is left alone")
    tree = unflatten({name: contiguous(to_numpy(tensors[name])) for name in tensors})
    with replacing_directory(path) as folder:
        inner = folder.absolute() / "tree"  # below `folder`, so that its remains go with it
        try:
            ocp.PyTreeCheckpointer().save(inner, tree)
        except ValueError as e:  # TensorStore's, for a full disk too
            reason = str(e).splitlines()[0].partition(" [")[0].rpartition(": ")[2]
            raise UserError(f"cannot write {str(path)!r}: {reason}") from e
        for entry in inner.iterdir():
            entry.rename(folder / entry.name)
        inner.rmdir()
        (folder / METADATA).write_text(json.dumps(dict(metadata or {}), indent=2) + "\n")

"""From the address of a folder that holds a checkpoint to a local copy of it.

A copy is kept by its address and by what the store says of its files, so that another checkpoint
under the same name is another copy.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax import stores
from vit_jax.checkpoint.files.archive import replacing_directory
from vit_jax.checkpoint.files.orbax import RUN, STEP, STEP_FILE, TREE_FILES
from vit_jax.checkpoint.files.repository import CONFIG
from vit_jax.errors import UserError
from vit_jax.waiting import waiting

_FLAX = re.compile(r"checkpoint_\d+")


def fetch_folder(address: str, cache: pathlib.Path) -> pathlib.Path:
    """A local folder with the checkpoint that lies in a folder of a store.

    Args:
      address: The workdir of a run, of which the newest whole checkpoint is fetched; one of its
        checkpoints; or a directory of Orbax, Hugging Face or timm.
      cache: Where copies are kept.

    Raises:
      UserError: if the folder holds no checkpoint, or cannot be read or written.
    """
    root = stores.path(address.rstrip("/"))
    try:
        files = stores.files_below(root)
        if STEP_FILE in files:  # a checkpoint of a run, which says beside it what model it is
            root, step = root.parent, f"{root.name}/"
            beside = {RUN: root.fs.info((root / RUN).path)} if (root / RUN).is_file() else {}
            files = {step + name: info for name, info in files.items()} | beside
            inside = step
        else:
            files, inside = _chosen(address, files), ""
        copy = cache / stores.version(address, files) / root.name
        if not copy.exists():
            with waiting(f"fetching {address}", [cache]):
                copy.parent.mkdir(parents=True, exist_ok=True)
                with replacing_directory(copy) as folder:
                    stores.download([root / name for name in files], [folder / n for n in files])
    except OSError as error:
        raise UserError(f"cannot fetch {address}: {error.strerror or error}") from error
    return copy / inside


def _chosen(address: str, files: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The files of the newest checkpoint of a run, or those of a directory of weights."""
    if newest := _newest(files):
        return {n: f for n, f in files.items() if n == RUN or n.partition("/")[0] == newest}
    if CONFIG in files:
        return {name: info for name, info in files.items() if "/" not in name}
    if any(name in files for name in TREE_FILES):
        return dict(files)
    raise UserError(
        f"{address} holds no checkpoint: expected the workdir of a run (`checkpoint_N`), a "
        f"directory of Orbax, or one of Hugging Face or timm ({CONFIG})"
    )


def _newest(files: Iterable[str]) -> str | None:
    """The newest whole checkpoint of a run, which is a folder, or a file of Flax's."""
    steps: dict[int, str] = {}
    for name in files:
        top, _, inside = name.partition("/")
        whole = inside == STEP_FILE or (not inside and _FLAX.fullmatch(top))
        if whole and (match := STEP.fullmatch(top)):
            steps[int(match[1])] = top
    return steps[max(steps)] if steps else None

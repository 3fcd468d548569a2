"""Copies on this disk of what can only be read from a disk: ArrayRecord, whose reader is C++.

Files of a store are copied when a dataset is opened, once a machine, and lie in `$VIT_JAX_CACHE` or
`~/.cache/vit_jax`, under a name that changes with what the store holds.
"""

import os
import pathlib
import tempfile
from collections.abc import Sequence

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.waiting import waiting

_RECORDS = ".array"  # `.array_record` and `.arrayrecord`, which other files of a dataset lack


def of_folder(folder: str) -> str:
    """The path of a folder of a dataset, or of a copy of all its files.

    Raises:
      UserError: if it cannot be read, or not be copied.
    """
    return folder if not stores.is_address(folder) else str(_copied(stores.absolute(folder), None))


def of_files(files: Sequence[str]) -> list[str]:
    """The paths of files, or of copies of them; what describes them is beside them there too.

    Raises:
      UserError: if one of them cannot be read, or not be copied.
    """
    folders = {os.path.dirname(file) for file in files if stores.is_address(file)}
    wanted = {f: {os.path.basename(x) for x in files if os.path.dirname(x) == f} for f in folders}
    copied = {folder: _copied(folder, names) for folder, names in wanted.items()}
    return [
        str(copied[folder] / os.path.basename(file))
        if (folder := os.path.dirname(file)) in copied
        else file
        for file in files
    ]


def _copied(folder: str, names: set[str] | None) -> pathlib.Path:
    """The copy of a folder with files of these names, or all, and with what describes them."""
    root = stores.path(folder)
    try:
        found = {name: x for name, x in stores.files_below(root).items() if "/" not in name}
        copy = stores.cache_folder() / "data" / stores.version(folder, found) / root.name
        missing = [
            name
            for name in found
            if (names is None or name in names or _RECORDS not in name)
            and not (copy / name).exists()
        ]
        if missing:
            copy.mkdir(parents=True, exist_ok=True)
            size = sum(found[name].get("size") or 0 for name in missing)
            what = f"copying {len(missing)} files of {folder}, {size / 1e6:,.1f} MB, to {copy}"
            # Other processes may copy the same: each file appears as a whole.
            with waiting(what, [copy]), tempfile.TemporaryDirectory(dir=copy) as temporary:
                parts = [pathlib.Path(temporary) / name for name in missing]
                stores.download([root / name for name in missing], parts)
                for part in parts:
                    part.replace(copy / part.name)
    except OSError as error:
        raise UserError(f"cannot copy {folder}: {error.strerror or error}") from error
    return copy

"""The folder of a run: made, locked, and for an address a local folder in its place."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.train.mirror import Mirror
from vit_jax.train.run_lock import run_lock


@contextlib.contextmanager
def opened(workdir: str | os.PathLike) -> Iterator[str | os.PathLike]:
    """Makes the folder of a run and keeps other runs out of it while the block runs.

    Args:
      workdir: A folder or an address.

    Yields:
      The folder to read and write, which is `workdir` itself or a `Mirror` of the address.

    Raises:
      UserError: if nothing can be written there, or another run is in it.
    """
    make_workdir(workdir)
    with one_run(workdir) as require_mine:
        if not stores.is_address(workdir):
            yield workdir
            return
        first = jax.process_index() == 0
        with Mirror(os.fspath(workdir), first, require_mine) as mirror:
            yield mirror


def make_workdir(workdir: str | os.PathLike) -> None:
    """Makes the folder `workdir`; that of an address needs no making.

    Raises:
      UserError: if files cannot be written to it.
    """
    folder = stores.path(workdir)
    # Of two runs that start at once, neither must find the other's file gone.
    probe = folder / f".writable_{secrets.token_hex(8)}"
    try:
        with stores.as_os_errors():
            if not stores.is_address(workdir):
                folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write to --workdir={workdir}: {e.strerror or e}") from e


@contextlib.contextmanager
def one_run(workdir: str | os.PathLike) -> Iterator[Callable[[], None]]:
    """Keeps other runs out of `workdir` while the block runs.

    The first process holds the lock for all of them; if it is refused, all of them stop.

    Yields:
      A function that raises UserError if this process held the lock and another run has it now.

    Raises:
      UserError: if another run is in `workdir`.
    """
    with contextlib.ExitStack() as stack:
        refused, require_mine = None, lambda: None
        if jax.process_index() == 0:
            try:
                require_mine = stack.enter_context(run_lock(workdir))
            except UserError as error:
                refused = error
        if jax.process_count() > 1:
            others = multihost_utils.broadcast_one_to_all(jnp.asarray(refused is not None))
            if bool(others) and refused is None:
                refused = UserError(
                    f"process 0 was refused --workdir={workdir}, and says why; all stop"
                )
        if refused is not None:
            raise refused
        yield require_mine

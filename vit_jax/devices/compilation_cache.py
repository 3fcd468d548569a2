"""Programs compiled once are found again by the next run: on by default."""

import os
import pathlib

import jax


def enable() -> None:
    """Keeps compiled programs in `~/.cache/vit_jax/xla`, or in $XDG_CACHE_HOME.

    What JAX's own JAX_COMPILATION_CACHE_DIR says goes first; an empty one keeps nothing.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"] is not None
    if chosen or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "vit_jax" / "xla"))

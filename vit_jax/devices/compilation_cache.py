"""The cache of compiled programs on disk, which training turns on by default."""

import os
import pathlib

import jax


def enable() -> None:
    """Keeps compiled programs in `$XDG_CACHE_HOME/vit_jax/xla`, by default below `~/.cache`.

    JAX's own setting JAX_COMPILATION_CACHE_DIR takes precedence; if it is empty, nothing is kept.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"] is not None
    if chosen or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "vit_jax" / "xla"))

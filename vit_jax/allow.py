"""What is an error unless somebody asks for it by name."""

from collections.abc import Collection

from vit_jax.errors import UserError, suggest

Allow = Collection[str]
OTHER_FUNCTION, NOT_FINITE = "other-function", "not-finite"
KNOWN = {
    OTHER_FUNCTION: "weights whose model computes otherwise than the one that takes them",
    NOT_FINITE: "weights that are NaN or infinite",
}


def check(allow: Allow) -> frozenset[str]:
    """The names, each of which is one of `KNOWN`; UserError for another."""
    for name in allow:
        if name not in KNOWN:
            raise UserError(
                f"nothing to allow is called {name!r}.{suggest(name, KNOWN)} "
                f"Known: {', '.join(KNOWN)}"
            )
    return frozenset(allow)

"""Proof that two implementations compute the same: `compare`, and the report of it.

comparison = compare("ViT-B_16", against="timm")      # random weights, fixed seed
comparison.verdict                                    # 'same' or 'differs'
comparison.matched.logits.error                       # numerics made equal: about 1e-14
comparison.as_shipped.logits.error                    # what a timm user gets: about 1e-3

To add a reference, write a module in `libraries` and name it in `references.REFERENCES`; how each
library builds a family is a field of the family, see `vit_jax.families.family`.
"""

from typing import Any

__all__ = ["Comparison", "compare"]

_LAZY = {"Comparison": "figures", "compare": "comparing"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(f"vit_jax.parity.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

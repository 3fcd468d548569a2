"""The implementations that ours is compared with.

A reference is a module with `PACKAGES` (what must be installed), `LAYOUT` (of `to_torch`),
`build(config, state, *, num_classes, image_size, matched)`, `logits_of(output)`,
`points(config, module)` and `differences(config)`; see `timm_reference`. Nothing of PyTorch is
imported before a model is built.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.errors import UserError, suggest

if TYPE_CHECKING:
    import numpy as np
    import torch

REFERENCES = {
    "timm": "timm_reference",
    "hf": "hf_reference",
    "tlt": "tlt_reference",
    "vit_pytorch": "vit_pytorch_reference",
}


class Point(NamedTuple):
    """A module on our side (path) and the one on theirs (dotted name) that gives the same."""

    ours: str
    theirs: str


class Difference(NamedTuple):
    """A detail in which the reference as shipped is not ours."""

    what: str
    ours: str
    shipped: str


def zoo_points(config: Mapping[str, Any]) -> list[Point]:
    """Where a model of the survey and its reference can be compared on the way."""
    from vit_jax.checkpoint.zoo import names_of

    return [Point(ours, theirs) for ours, theirs in names_of(config).points(config)]


def default_for(config: Mapping[str, Any]) -> str:
    """The reference that a model's family was proven against; timm for Google's.

    Raises:
      UserError: where no library that can be installed has the family.
    """
    from vit_jax.families.registry import family_of, is_google
    from vit_jax.models import variants

    if is_google(config):
        return "timm"
    family = variants.families()[family_of(config)]
    if family.reference not in REFERENCES:
        raise UserError(
            f"{family.title} is proven against figures of {family.reference}, which no package "
            f"holds; there is nothing to compare it with here. References: {', '.join(REFERENCES)}"
        )
    return family.reference


def load(module: "torch.nn.Module", state: Mapping[str, "np.ndarray"]) -> None:
    """Gives a module these weights, strictly; they are copied."""
    import numpy as np
    import torch

    tensors = {name: torch.from_numpy(np.array(x)) for name, x in state.items()}
    module.load_state_dict(tensors, strict=True, assign=True)


def get(name: str) -> Any:
    """The reference's module.

    Raises:
      UserError: for an unknown one, or if its packages are not installed.
    """
    if name not in REFERENCES:
        raise UserError(
            f"unknown reference {name!r}.{suggest(name, REFERENCES)} Known: {sorted(REFERENCES)}"
        )
    reference = importlib.import_module(f"vit_jax.parity.{REFERENCES[name]}")
    missing = [p for p in reference.PACKAGES if importlib.util.find_spec(p) is None]
    if missing:
        raise UserError(
            f"comparing with {name} needs {' and '.join(missing)}, not installed here: "
            'pip install "vit-jax[torch]"'
        )
    return reference

"""The implementations that ours is compared with.

Nothing of PyTorch is imported before a model is built. What a library calls the parts of a family,
how it builds one and where its numerics differ are facts of the family, see `families.family`.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.errors import UserError, suggest

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vit_jax.families.family import Difference

# Layout of the family -> module of `vit_jax.parity.libraries`.
REFERENCES = {"timm": "timm", "hf": "hf", "tlt": "tlt", "vit_pytorch": "vit_pytorch"}

Config = Mapping[str, Any]


class Point(NamedTuple):
    """A module on our side (path) and the one on theirs (dotted name) that gives the same."""

    ours: str
    theirs: str


def _points(config: Config, layout: str, module: "torch.nn.Module") -> list[Point]:
    from vit_jax.checkpoint import names

    del module
    return [Point(*pair) for pair in names.layout_of(config, layout).points(config)]


def _itself(output: Any) -> Any:
    return output


@dataclasses.dataclass(frozen=True)
class Library:
    """A library that builds models with which ours are compared.

    Attributes:
      layout: Its layout, as `to_torch` takes it.
      packages: What must be installed.
      construct: Config, state dict in its names, number of classes, image size, and whether its
        numerics are made ours, to the module with these weights in evaluation mode.
      logits_of: What its model returns to the logits, or to the features without classes.
      points_of: Config, layout and module to where the two sides can be compared on the way.
    """

    layout: str
    packages: tuple[str, ...]
    construct: "Callable[[Config, Mapping[str, np.ndarray], int, tuple[int, int], bool], Any]"
    logits_of: Callable[[Any], Any] = _itself
    points_of: Callable[[Config, str, Any], list[Point]] = _points

    def build(
        self,
        config: Config,
        state: "Mapping[str, np.ndarray]",
        *,
        num_classes: int,
        image_size: tuple[int, int],
        matched: bool,
    ) -> "torch.nn.Module":
        """The library's model with these weights.

        Args:
          config: Our constructor fields.
          state: The weights in the library's names (`to_torch`), loaded strictly.
          num_classes: 0 for none.
          image_size: (height, width) in pixels.
          matched: Whether its numerics are made ours; else they are what the library ships.

        Raises:
          UserError: for a model that the library does not build.
        """
        return self.construct(config, state, num_classes, image_size, matched).eval()

    def points(self, config: Config, module: "torch.nn.Module") -> list[Point]:
        """Where the two sides can be compared on the way, first to last."""
        return self.points_of(config, self.layout, module)

    def differences(self, config: Config) -> "list[Difference]":
        """What the library ships otherwise than we compute."""
        from vit_jax.checkpoint import names

        return names.layout_of(config, self.layout).differences(config)


def default_for(config: Config) -> str:
    """The library that a model's family was proven against.

    Raises:
      UserError: where no library that can be installed has the family.
    """
    from vit_jax.families.registry import get as family_of

    family = family_of(config)
    reference = family.reference
    if reference not in REFERENCES:
        raise UserError(
            f"{family.title} is proven against {family.figures}, which no package "
            f"holds; there is nothing to compare it with here. References: {', '.join(REFERENCES)}"
        )
    return reference


def load(module: "torch.nn.Module", state: "Mapping[str, np.ndarray]") -> None:
    """Gives a module these weights, strictly; they are copied."""
    import numpy as np
    import torch

    tensors = {name: torch.from_numpy(np.array(x)) for name, x in state.items()}
    module.load_state_dict(tensors, strict=True, assign=True)


def get(name: str) -> Library:
    """The library.

    Raises:
      UserError: for an unknown one, or if its packages are not installed.
    """
    if name not in REFERENCES:
        raise UserError(
            f"unknown reference {name!r}.{suggest(name, REFERENCES)} Known: {sorted(REFERENCES)}"
        )
    module = importlib.import_module(f"vit_jax.parity.libraries.{REFERENCES[name]}")
    library: Library = module.LIBRARY
    missing = [p for p in library.packages if importlib.util.find_spec(p) is None]
    if missing:
        raise UserError(
            f"comparing with {name} needs {' and '.join(missing)}, not installed here: "
            'pip install "vit-jax[torch]"'
        )
    return library

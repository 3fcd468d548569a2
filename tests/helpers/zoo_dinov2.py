"""A DINOv2 or DINOv3 beside timm's, which leaves some of its parameters out."""

from typing import Any

import numpy as np
from zoo_cases import Case

from vit_jax.checkpoint import names
from vit_jax.variables import collections

POSITIONS = "posembed_input/pos_embedding"


class DINOv2Case(Case):
    """What timm does not hold is zero on our side, so that nothing is lost on the way."""

    def __init__(self, *args: Any, **fields: Any):
        super().__init__(*args, **fields)
        if self.layout != "timm" or "mask_token" not in self.flat:
            return
        self.flat["mask_token"] = np.zeros_like(self.flat["mask_token"])
        if self._folds:
            self.flat[POSITIONS] = self.flat[POSITIONS].copy()
            self.flat[POSITIONS][:, 0] = 0
        self.variables = collections(self.flat, names.statistics(self.config))

    @property
    def _folds(self) -> bool:
        """Whether timm adds the position of the class token to the token."""
        return self.flat.keys() >= {"registers", POSITIONS}

    def _their_gradients(self) -> dict[str, np.ndarray]:
        """The class token and its position are added up, so that they have one gradient."""
        gradients = super()._their_gradients()
        gradients["mask_token"] = np.zeros(self.flat["mask_token"].shape)
        if self._folds:
            both = [gradients["cls"], gradients[POSITIONS]]
            gradients[POSITIONS] = np.concatenate(both, axis=1)
        return gradients

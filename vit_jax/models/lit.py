"""LiT: a text tower trained beside an image tower that is done.

Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning" (arXiv:2111.07991). Fields
and parameter names are those of the original code. Sizes: `vit_jax.configs.models`.
"""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.errors import UserError
from vit_jax.families import lit as family
from vit_jax.families.text import Text
from vit_jax.models.two_towers import TwoTowerModel


class LiT(TwoTowerModel):
    """Images [N, H, W, 3] and tokens [N, L] to unit vectors, [N, D] each.

    Attributes: as in `TwoTowerModel`; and
      pp: {'tokenizer_name', 'max_len', 'size'}: how texts and images are prepared.
    """

    pp: Mapping[str, Any] | ConfigDict | None = None

    def __post_init__(self):
        if isinstance(self.pp, Mapping):
            self.pp = FrozenConfigDict(dict(self.pp))  # the original's code reads `model.pp.size`
        super().__post_init__()

    # --- the original's methods ---

    def load_variables(self, path: str | os.PathLike | None = None, cache: bool = True) -> Any:
        """The released weights of the model, {'params': …}, as NumPy arrays.

        Args:
          path: Whatever `checkpoint.load` reads. None takes `NAME.npz` of the current folder, and
            where there is none the file that the authors published.
          cache: What the original's signature has; a file that is fetched always stays in
            `~/.cache/vit_jax`.

        Raises:
          UserError: as `checkpoint.load`.
        """
        del cache
        from vit_jax import checkpoint
        from vit_jax.checkpoint.io import as_scanned
        from vit_jax.families.registry import config_of

        config = config_of(self)
        if path is None:
            path = f"{self.model_name}.npz"
            path = path if os.path.exists(path) else family.weights_address(str(self.model_name))
        return {"params": as_scanned(checkpoint.load(path, config), config)}

    @property
    def vocab_path(self) -> str:
        """Its vocabulary: in the current folder, or else where the authors published it."""
        address = family.vocabulary_address(str(self.model_name), self._prepared().tokenizer_name)
        here = address.rpartition("/")[2]
        return here if os.path.exists(here) else address

    def get_tokenizer(self) -> Any:
        """What makes tokens of texts; see `vit_jax.text.get_tokenizer`."""
        from vit_jax.text import get_tokenizer

        pp = self._prepared()
        return get_tokenizer(Text(pp.tokenizer_name, self.vocab_path, pp.max_len))

    def get_image_preprocessing(self, crop: bool = False) -> Any:
        """What prepares images; see `vit_jax.preprocess.PreprocessImages`."""
        from vit_jax import preprocess

        return preprocess.PreprocessImages(size=self._prepared().size, crop=crop)

    def get_pp(self, crop: bool = False) -> Any:
        """What prepares images and texts; see `vit_jax.preprocess.get_pp`."""
        from vit_jax import preprocess

        pp = self._prepared()
        return preprocess.get_pp(
            tokenizer_name=pp.tokenizer_name,
            vocab_path=self.vocab_path,
            max_len=pp.max_len,
            size=pp.size,
            crop=crop,
        )

    def _prepared(self) -> Any:
        if self.pp is None:
            raise UserError(
                "the model does not say how its images and texts are prepared: give it `pp`, a "
                "mapping of 'tokenizer_name', 'max_len' and 'size'"
            )
        return self.pp

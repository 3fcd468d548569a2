"""What only PVT has; the rest is in test_battery.py, the official figures in test_official.py."""

import pytest
from zoo_cases import Case

from vit_jax.errors import UserError

SIZES = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 2, 1, 2), "num_heads": (1, 2, 3, 4)}


def test_hugging_face_takes_squares_only():
    with pytest.raises(UserError, match="takes square images; got 64×96"):
        Case("pvt_tiny", (64, 96), **SIZES).reference()

"""What one image costs: parameters and multiply-adds of every registered model.

The figures stand in `sizes.json`, so that listing the models needs no JAX; `generate.py` counts
them.
"""

import dataclasses
import json
import pathlib

FILE = pathlib.Path(__file__).with_name("sizes.json")


@dataclasses.dataclass(frozen=True)
class Size:
    """What a model holds, and what one image costs.

    Attributes:
      params: Number of parameters, the head included.
      macs: Multiply-adds of one forward pass in matrix products and convolutions, the figure
        that papers print as FLOPs (Swin, arXiv:2103.14030, Table 1).
      body: Numbers in tensors that depend neither on the head nor on the image size, running
        statistics included: what a file is recognised by.
    """

    params: int
    macs: int
    body: int


def recorded() -> dict[str, Size]:
    """The size of every registered model, at its own image size and head, by name."""
    return {name: Size(**fields) for name, fields in json.loads(FILE.read_text()).items()}

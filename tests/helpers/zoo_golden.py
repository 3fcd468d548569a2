"""Figures of official code on random weights (tests/golden/zoo), by the recipe they were made with.

`<name>.json` holds the weights' names, shapes and kinds, `<name>.npz` what came out of them. Both
were made once, elsewhere; neither PyTorch nor the official code is needed to read them.
"""

import hashlib
import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "zoo"


class Golden:
    """One official model.

    Attributes:
      figures: Outputs in float64, `logits_f64` among them, and tensors that are not drawn.
      weights: Its tensors by official names, float32.
      images: [N, H, W, 3], float64.
    """

    def __init__(self, name: str):
        facts = json.loads((FOLDER / f"{name}.json").read_text())
        self.figures = dict(np.load(FOLDER / f"{name}.npz"))
        self.weights = _drawn(facts)
        self.weights |= {
            key.removeprefix("frozen:"): x
            for key, x in self.figures.items()
            if key.startswith("frozen:")
        }
        pixels = np.random.default_rng(1).standard_normal(facts["input"]).astype(np.float32)
        self.images = np.moveaxis(pixels, 1, -1).astype(np.float64)


def _drawn(facts: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    drawn, digest = {}, hashlib.sha256()
    for name, shape, kind in sorted(facts["state_dict"]):
        if kind in ("frozen", "int_buffer"):
            continue
        x = rng.standard_normal(shape).astype(np.float32) * np.float32(facts["scale"])
        if kind == "norm_weight":
            x = x + np.float32(1)
        elif kind == "bn_var":
            x = np.abs(x) + np.float32(0.5)
        drawn[name] = x
        digest.update(np.ascontiguousarray(x).tobytes())
    assert digest.hexdigest() == facts["sha256_drawn"]
    return drawn

"""Makes the figures of one official model of PyTorch, or compares with those that are recorded.

    python tests/golden/make_zoo.py lvvit_tiny_lam2 --model tlt.models.lvvit:LV_ViT --check

`zoo/NAME.json` says which repository and commit the model is from, and what its constructor gets;
`--path` is a checkout of that repository. See README.md for how weights and images are drawn.
"""

import argparse
import hashlib
import importlib
import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch

ZOO = pathlib.Path(__file__).with_name("zoo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of zoo/NAME.json, whose `ctor` is what the constructor gets")
    parser.add_argument("--model", required=True, metavar="MODULE:CLASS")
    parser.add_argument("--path", help="a checkout of the official code")
    parser.add_argument("--fields", type=json.loads, default={}, help="more of the constructor's")
    parser.add_argument("--middle", nargs="*", default=[], metavar="FIGURE=MODULE")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    words = parser.parse_args()
    facts = json.loads((ZOO / f"{words.name}.json").read_text())
    model = build(words.model, words.path, facts["ctor"] | words.fields)
    facts["state_dict"], tensors = draw(model, facts["scale"])
    facts["sha256_drawn"] = digest(tensors)
    figures = run(model, tensors, facts["input"], dict(pair.split("=") for pair in words.middle))
    if words.check:
        check(words.name, facts, figures)
    else:
        (ZOO / f"{words.name}.json").write_text(json.dumps(facts))
        np.savez(ZOO / f"{words.name}.npz", **figures)


def build(model: str, path: str | None, fields: dict[str, Any]) -> torch.nn.Module:
    if path:
        sys.path.insert(0, path)
    module, _, name = model.partition(":")
    norms = {k: x for k, x in fields.items() if isinstance(x, str) and x.startswith("LayerNorm(")}
    for key, text in norms.items():
        eps = float(text.removeprefix("LayerNorm(eps=").removesuffix(")"))
        fields[key] = lambda width, eps=eps: torch.nn.LayerNorm(width, eps=eps)
    return getattr(importlib.import_module(module), name)(**fields).eval()


def draw(model: torch.nn.Module, scale: float) -> tuple[list, dict[str, np.ndarray]]:
    """Names, shapes and kinds of all tensors, and numbers for those that are drawn."""
    kinds, rng, drawn = kinds_of(model), np.random.default_rng(0), {}
    state = model.state_dict()
    for name in sorted(state):
        if kinds[name] in ("frozen", "int_buffer"):
            continue
        x = rng.standard_normal(tuple(state[name].shape)).astype(np.float32) * np.float32(scale)
        if kinds[name] == "norm_weight":
            x = x + np.float32(1)
        elif kinds[name] == "bn_var":
            x = np.abs(x) + np.float32(0.5)
        drawn[name] = x
    return [[name, list(x.shape), kinds[name]] for name, x in state.items()], drawn


def kinds_of(model: torch.nn.Module) -> dict[str, str]:
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    norms = {
        f"{name}.weight" for name, part in model.named_modules() if "Norm" in type(part).__name__
    }
    found = {}
    for name, x in model.state_dict().items():
        if name.endswith("running_mean"):
            found[name] = "bn_mean"
        elif name.endswith("running_var"):
            found[name] = "bn_var"
        elif not x.is_floating_point():
            found[name] = "int_buffer"
        elif name not in trained:
            found[name] = "frozen"
        else:
            found[name] = "norm_weight" if name in norms else "param"
    return found


def digest(tensors: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(np.ascontiguousarray(tensors[name]).tobytes())
    return total.hexdigest()


def run(
    model: torch.nn.Module,
    tensors: dict[str, np.ndarray],
    shape: list[int],
    middle: dict[str, str],
) -> dict[str, np.ndarray]:
    """Logits in float64, what modules on the way give, and the tensors that are not drawn."""
    frozen = {
        f"frozen:{name}": x.numpy()
        for name, x in model.state_dict().items()
        if name not in tensors and x.is_floating_point()
    }
    model.load_state_dict({n: torch.from_numpy(x) for n, x in tensors.items()}, strict=False)
    model.double()
    found = {}

    def keep(figure: str):
        def hook(module: Any, inputs: Any, output: Any) -> None:
            found[figure] = (output[0] if isinstance(output, tuple) else output).numpy()

        return hook

    modules = dict(model.named_modules())
    for figure, name in middle.items():
        modules[name].register_forward_hook(keep(figure))
    pixels = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        output = model(torch.from_numpy(pixels.astype(np.float64)))
    return {"logits_f64": getattr(output, "logits", output).numpy(), **found, **frozen}


def check(name: str, facts: dict[str, Any], figures: dict[str, np.ndarray]) -> None:
    recorded = json.loads((ZOO / f"{name}.json").read_text())
    print(
        "the same names, shapes and kinds:",
        sorted(recorded["state_dict"]) == sorted(facts["state_dict"]),
    )
    print("the same numbers drawn:", recorded["sha256_drawn"] == facts["sha256_drawn"])
    with np.load(ZOO / f"{name}.npz") as known:
        for figure in figures.keys() & set(known):
            error = np.abs(figures[figure] - known[figure]).max()
            print(f"{figure}: differs by at most {error:.1e}")


if __name__ == "__main__":
    main()

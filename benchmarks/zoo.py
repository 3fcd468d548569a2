"""Every family against its reference: what the README's table of families says of the error.

    python benchmarks/zoo.py [FAMILY …] [--all]

Without `--all` the smallest model of each family is run at its own size; with it every one, which
takes hours and some 40 GB of memory for the largest. Both sides compute two random images with
random weights and statistics in float64; the error is the largest difference of logits in units
of their standard deviation, and the largest of the models that were run. The figures are written to
`zoo.json` beside this file, from which `python -m vit_jax.families.generate` makes the table.
"""

import argparse
import json
import pathlib

from vit_jax.families.registry import families, resolve
from vit_jax.families.sizes import recorded
from vit_jax.parity import compare
from vit_jax.parity.references import REFERENCES

_FIGURES = pathlib.Path(__file__).with_name("zoo.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", help="default: all families")
    parser.add_argument("--all", action="store_true", help="every model, not only the smallest")
    args = parser.parse_args()
    figures = json.loads(_FIGURES.read_text())
    for name in args.family or families():
        if families()[name].reference not in REFERENCES:
            continue  # no package holds it
        models = sorted(_models(name), key=lambda model: recorded()[model].params)
        figures[name] = f"{max(map(_error, models if args.all else models[:1])):.0e}"
        print(f"{name:<16}{figures[name]}", flush=True)
    _FIGURES.write_text(json.dumps(figures, indent=2) + "\n")


def _models(family: str) -> list[str]:
    known = families()[family].architectures.items()
    return [name for name, architecture in known if architecture.alias_of is None]


def _error(name: str) -> float:
    reference = families()[resolve(name).family].reference
    return compare(resolve(name), against=reference, num_images=2).matched.logits.error


if __name__ == "__main__":
    main()

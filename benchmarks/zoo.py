"""The survey's models against their references: the README's table, one row a family.

    python benchmarks/zoo.py [FAMILY …] [--all]

Without `--all` the smallest variant of each family is run at its own size; with it every one, which
takes hours and some 40 GB of memory for the largest. Both sides compute two random images with
random weights and statistics in float64; the error is the largest difference of logits in units
of their standard deviation, and the largest of the variants that were run.
"""

import argparse
import sys

from vit_jax.families.registry import resolve
from vit_jax.families.sizes import recorded
from vit_jax.models.variants import Family, families
from vit_jax.parity import compare
from vit_jax.parity.references import REFERENCES

_COLUMNS = (
    "family",
    "paper (arXiv)",
    "variants",
    "parameters, M",
    "GFLOPs",
    "published top-1",
    "reference",
    "error (float64)",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", help="default: all families")
    parser.add_argument("--all", action="store_true", help="every variant, not only the smallest")
    args = parser.parse_args()
    print("| " + " | ".join(_COLUMNS) + " |")
    print("|" + "---|" * len(_COLUMNS))
    for name, family in families().items():
        if not args.family or name in args.family:
            print("| " + " | ".join(_row(family, args.all)) + " |", flush=True)


def _row(family: Family, every: bool) -> list[str]:
    sizes = {name: recorded()[name] for name in family.variants}
    by_size = sorted(family.variants, key=lambda name: sizes[name].params)
    installable = family.reference in REFERENCES
    run = (by_size if every else by_size[:1]) if installable else []
    errors = [_error(name, family.reference) for name in run]
    top1 = [v.top1 for v in family.variants.values() if v.top1 is not None]
    return [
        family.title,
        family.paper,
        f"{len(family.variants)}: `{by_size[0]}` … `{by_size[-1]}`",
        _range([sizes[name].params / 1e6 for name in by_size], "{:.1f}"),
        _range([sizes[name].macs / 1e9 for name in by_size], "{:.1f}"),
        _range(top1, "{:.1f}") if top1 else "–",
        family.reference,
        f"{max(errors):.0e}" if errors else "see its tests",
    ]


def _error(name: str, against: str) -> float:
    print(f"{name} …", file=sys.stderr)
    found = compare(resolve(name), against=against, num_images=2)
    return found.matched.logits.error


def _range(values: list[float], form: str) -> str:
    least, most = form.format(min(values)), form.format(max(values))
    return least if least == most else f"{least} – {most}"


if __name__ == "__main__":
    main()

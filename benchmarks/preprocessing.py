"""Pixels that transformers and timm prepare from what is written beside weights, against ours.

    python benchmarks/preprocessing.py

A hundred JPEG photographs go through the preprocessing of every registered model. A difference is
in levels, of which a pixel has 0 to 255. A row holds the ways of which the same is said.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "helpers"))
import prepared_elsewhere as elsewhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = tuple(elsewhere.LIBRARIES)
    parser.add_argument("--images", type=int, default=100, metavar="N", help="%(default)s")
    parser.add_argument("--library", nargs="+", choices=known, default=known)
    args = parser.parse_args()
    photographs = list(elsewhere.photographs(args.images))
    print("| library | what is said of the difference | ways | largest | mean | above 1 level |")
    print("|---|---|--:|--:|--:|--:|")
    for library in args.library:
        rows: dict[str, list[tuple[float, float, float]]] = {}
        for way in elsewhere.registered_ways():
            with tempfile.TemporaryDirectory() as folder:
                pixels, said = elsewhere.LIBRARIES[library](way, pathlib.Path(folder))
                figures = [_figures(elsewhere.differences(pixels, x, way)) for x in photographs]
            rows.setdefault("; ".join(said) or "nothing: equal", []).extend(figures)
        for said, figures in rows.items():
            largest, mean, above = np.transpose(figures)
            ways = len(figures) // len(photographs)
            numbers = f"{largest.max():.3f} | {mean.mean():.4f} | {above.mean():.4%}"
            print(f"| {library} | {said} | {ways} | {numbers} |", flush=True)


def _figures(levels: np.ndarray) -> tuple[float, float, float]:
    """The largest and the mean difference, and the share that is above 1 and rounding."""
    return levels.max(), levels.mean(), (levels > 1.01).mean()


if __name__ == "__main__":
    main()

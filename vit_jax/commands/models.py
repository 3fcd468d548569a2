"""List the models with their size, image size and cost.

GFLOPs are billions of multiply-adds in one forward pass of one image, as papers print them.
"""

import argparse
import fnmatch
from typing import Any

from vit_jax.commands import common
from vit_jax.errors import UserError, suggest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern",
        nargs="?",
        default="",
        metavar="PATTERN",
        help="part of a name, or a pattern such as 'ViT-*_16' (default: every model)",
    )
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    rows = matching(args.pattern)
    if args.json:
        common.print_json(rows)
        return
    columns = ("name", "timm name", ">Mparams", ">image", ">GFLOPs")
    common.print_table(columns, [_cells(row) for row in rows])


def matching(pattern: str) -> list[dict[str, Any]]:
    """The models whose name, ours or timm's, holds or matches `pattern`, in any case.

    Raises:
      UserError: if there is none.
    """
    from vit_jax.models.registry import registered
    from vit_jax.models.sizes import recorded

    sizes = recorded()
    rows = [
        {
            "name": name,
            "timm_name": spec.timm_name,
            "params": sizes[name].params,
            "image_size": spec.preprocess.size,
            "macs": sizes[name].macs,
        }
        for name, spec in registered().items()
        if _matches(pattern, name) or _matches(pattern, spec.timm_name or "")
    ]
    if not rows:
        raise UserError(
            f"no model matches {pattern!r}.{suggest(pattern, registered())} "
            "`vit-jax models` lists them all."
        )
    return rows


def _matches(pattern: str, name: str) -> bool:
    pattern, name = pattern.lower(), name.lower()
    if any(wildcard in pattern for wildcard in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return pattern in name


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        row["timm_name"] or "–",
        f"{row['params'] / 1e6:.2f}",
        str(row["image_size"]),
        f"{row['macs'] / 1e9:.2f}",
    ]

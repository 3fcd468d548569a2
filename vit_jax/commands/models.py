"""List the models with their size, image size and cost, or the published checkpoints.

GFLOPs are billions of multiply-adds in one forward pass of one image, as papers print them.
"""

import argparse
import fnmatch
from collections.abc import Iterable
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
    parser.add_argument(
        "--checkpoints",
        action="store_true",
        help="list the published checkpoints, and who else holds their weights",
    )
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.checkpoints:
        _list_checkpoints(args.pattern, args.json)
        return
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
    from vit_jax.families.registry import registered
    from vit_jax.families.sizes import recorded

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
        if _any_matches(pattern, (name, spec.timm_name or ""))
    ]
    if not rows:
        raise UserError(
            f"no model matches {pattern!r}.{suggest(pattern, registered())} "
            "`vit-jax models` lists them all."
        )
    return rows


def checkpoints(pattern: str) -> list[dict[str, Any]]:
    """The published checkpoints of which some name matches `pattern`, in any case.

    Their model, collection, file, timm's name and Hugging Face's count.

    Raises:
      UserError: if there is none.
    """
    from vit_jax.families.published import published

    rows = [row.to_dict() for row in published() if _any_matches(pattern, row.names)]
    if not rows:
        names = {name for row in published() for name in row.names}
        raise UserError(
            f"no published checkpoint matches {pattern!r}.{suggest(pattern, names)} "
            "`vit-jax models --checkpoints` lists them all."
        )
    return rows


def _list_checkpoints(pattern: str, as_json: bool) -> None:
    rows = checkpoints(pattern)
    if as_json:
        common.print_json(rows)
        return
    print("\n\n".join(_described(row) for row in rows))


def _any_matches(pattern: str, names: Iterable[str]) -> bool:
    return any(_matches(pattern, name) for name in names)


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


def _described(row: dict[str, Any]) -> str:
    """A few lines, not a row: the names of the files alone fill a terminal's width."""
    facts = (
        row["model"] if row["supported"] else f"{row['model']} (no model here)",
        f"{row['resolution']} px",
        row["num_classes"] and f"{row['num_classes']} classes",
        row["head"] and f"head {row['head']}",
        row["top1"] and f"top-1 {row['top1']} % ({row['top1_from']})",
        row["recommended"] and "recommended",
    )
    copies = (
        row["timm"] and f"timm {row['timm']}",
        row["hf"] and f"Hugging Face {row['hf']}",
    )
    lines = (" · ".join(filter(None, facts)), " · ".join(filter(None, copies)), row["note"])
    return "\n    ".join([row["file"], *filter(None, lines)])

"""List the models with their size, image size and cost, or the weights that can be loaded.

A query of AugReg's index compares its columns, among them name, ds, aug, wd, do, sd, final_val,
adapt_ds, adapt_resolution and adapt_final_val, by which what it finds is sorted:
--augreg 'name == "B/16" and adapt_resolution in (224, 384) and not wd > 0.1'.

GFLOPs are billions of multiply-adds in one forward pass of one image, as papers print them; of a
text, for models of texts, or of both.
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
    published = parser.add_mutually_exclusive_group()
    published.add_argument(
        "--checkpoints",
        action="store_true",
        help="list the original's published checkpoints, and who else holds their weights",
    )
    published.add_argument(
        "--weights",
        action="store_true",
        help="list all published weights: where to load them from, licence, size, accuracy",
    )
    published.add_argument(
        "--augreg", metavar="QUERY", help="list those of AugReg's 50,000 checkpoints that are meant"
    )
    parser.add_argument(
        "--index",
        metavar="FILE|ADDRESS",
        help="AugReg's index.csv (by default that of its bucket, which may refuse)",
    )
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.augreg is not None:
        _list_augreg(args)
        return
    if args.index is not None:
        raise UserError("--index goes with --augreg QUERY")
    if args.weights:
        _list_weights(args.pattern, args.json)
        return
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
    from vit_jax.families.registry import families, registered
    from vit_jax.families.sizes import recorded

    def takes_images(spec: Any) -> bool:
        return "images" in families()[spec.family].inputs

    sizes = recorded()
    rows = [
        {
            "name": name,
            "timm_name": spec.timm_name,
            "params": sizes[name].params,
            "image_size": spec.preprocess.size if takes_images(spec) else None,
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


def weights(pattern: str) -> list[dict[str, Any]]:
    """The published weights of which name, address or licence matches `pattern`, in any case.

    Raises:
      UserError: if there are none.
    """
    from vit_jax.families.loadable import loadable

    known = list(loadable())
    rows = [
        row.to_dict()
        for row in known
        if _any_matches(pattern, (row.name, row.address, row.licence))
    ]
    if not rows:
        names = {name for row in known for name in (row.name, row.address)}
        raise UserError(
            f"no published weights match {pattern!r}.{suggest(pattern, names)} "
            "`vit-jax models --weights` lists them all."
        )
    return rows


def _list_weights(pattern: str, as_json: bool) -> None:
    rows = weights(pattern)
    if as_json:
        common.print_json(rows)
        return
    columns = ("load", "model", "licence", ">Mparams", ">image", ">top-1")
    common.print_records(
        columns,
        [
            [
                row["address"],
                row["name"],
                row["licence"] or "–",
                f"{row['params'] / 1e6:.1f}",
                "×".join(map(str, row["image_size"])) if row["image_size"] else "–",
                f"{row['top1']:.1f}" if row["top1"] else "–",
            ]
            for row in rows
        ],
    )


def _list_checkpoints(pattern: str, as_json: bool) -> None:
    rows = checkpoints(pattern)
    if as_json:
        common.print_json(rows)
        return
    print("\n\n".join(_described(row) for row in rows))


def _list_augreg(args: argparse.Namespace) -> None:
    from vit_jax.checkpoint import augreg

    if args.pattern:
        raise UserError(
            f"--augreg takes its query alone; say {args.pattern!r} in it, as "
            """'name == "B/16"'"""
        )
    location = args.index or augreg.PUBLISHED
    needed = {augreg.ADAPTED: float, augreg.UPSTREAM: float, augreg.ADAPTED_FILE: str, "name": str}
    try:
        index = augreg.read_index(location, needed)
    except UserError as e:
        if args.index is not None:
            raise
        reason = str(e).removesuffix(".")
        raise UserError(f"{reason}. Give a copy of the index: --index FILE") from e
    rows = index.chosen(args.augreg)
    if not rows:
        raise UserError(
            f"none of {len(index.rows)} checkpoints in {location} is meant by the query"
        )
    if args.json:
        common.print_json(rows)
        return
    columns = ("name", f">{augreg.ADAPTED}", f">{augreg.UPSTREAM}", augreg.ADAPTED_FILE)
    common.print_table(columns, [[_cell(row[c.strip(">")]) for c in columns] for row in rows])


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


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
        str(row["image_size"] or "–"),
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

"""Say what a checkpoint is: format, model, size, head, preprocessing, where it came from.

PATH is whatever `vit-jax convert` reads: a file, a directory of Hugging Face or Orbax, or the
workdir of a run.
"""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.families.registry import family_of, is_google

if TYPE_CHECKING:
    from vit_jax.checkpoint import Identity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file or a directory")
    parser.add_argument("--model", metavar="NAME", help="model in it, where it is not clear")
    parser.add_argument("--tensors", action="store_true", help="list the parameters too")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    from vit_jax import checkpoint

    found = checkpoint.identify(args.path, args.model)
    if args.json:
        fields = found.to_dict()
        if not args.tensors:
            del fields["tensors"]
        common.print_json(fields)
        return
    for name, text in facts(found):
        print(f"{name:<12}{text}")
    if args.tensors:
        rows = [
            [name, " × ".join(map(str, spec.shape)) or "scalar", spec.dtype.name]
            for name, spec in found.tensors.items()
        ]
        common.print_table(("parameter", "shape", "dtype"), rows)


def facts(found: "Identity") -> Iterator[tuple[str, str]]:
    """What there is to say, one line a fact; what the file does not tell is left out."""
    yield "format", f"{found.format}, layout {found.layout}"
    yield "model", " or ".join(found.models) or _sizes(found.config)
    dtypes = ", ".join(f"{dtype} × {n}" for dtype, n in found.dtypes.items())
    yield "parameters", f"{found.num_params:,} in {len(found.tensors)} tensors ({dtypes})"
    if found.grid:
        yield "positions", f"a grid of {found.grid[0]} × {found.grid[1]} patches"
    if found.image_size:
        yield "image size", f"{found.image_size[0]} × {found.image_size[1]} pixels"
    if found.config is not None:
        yield "head", _head(found)
    if found.class_names:
        yield "classes", common.some(found.class_names)
    if found.preprocess:
        yield "images", _images(found.preprocess)
    if found.skipped:
        yield (
            "skipped",
            f"{len(found.skipped)} that are no parameters: {common.some(found.skipped, 2)}",
        )
    for text in found.ambiguous:
        yield "open", text
    for text in found.notes:
        yield "note", text
    for record in _history(found):
        yield "made from", record


def _sizes(config: dict[str, Any] | None) -> str:
    if config is None:
        return "unknown"
    if not is_google(config):
        return f"{family_of(config)}, of sizes of its own"
    sizes = {k: v for k, v in config.items() if k not in ("transformer", "patches") and v}
    sizes |= config.get("transformer") or {}
    patch = "×".join(map(str, config["patches"]["size"]))
    return f"of sizes of its own: patch {patch}, " + ", ".join(
        f"{name} {value}" for name, value in sizes.items()
    )


def _head(found: "Identity") -> str:
    if not found.num_classes:
        return "none"
    zero = ", all zero: not trained" if found.head_is_zero else ""
    return f"{found.num_classes:,} classes{zero}"


def _images(preprocess: Any) -> str:
    p = preprocess
    how = "squashed" if p.resize == "squash" else "shorter side resized"
    crop = f", centre {p.crop:.4g} kept" if p.crop != 1 else ""
    smooth = "antialiased" if p.antialias else "not antialiased"
    mean, std = (" ".join(f"{x:.4g}" for x in xs) for xs in (p.mean, p.std))
    return f"{p.size} px, {how}{crop}, {p.method}, {smooth}; mean {mean}, std {std}"


def _history(found: "Identity") -> Iterator[str]:
    """The conversions that the file records, newest first; hints, so malformed ones are passed."""
    try:
        records = json.loads(found.metadata.get("vit_jax_conversion", "[]"))
    except ValueError:
        return
    for record in reversed(records if isinstance(records, list) else []):
        try:
            source, steps = record["source"], record["steps"]
            done = "".join(f"; {step}" for step in steps)
            yield (
                f"{source['file']} ({source['format']}, {source['layout']}) by {record['tool']}"
                f"{done}; sha256 {source['sha256']}"
            )
        except (KeyError, TypeError):
            continue

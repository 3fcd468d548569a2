"""Say what a checkpoint is: format, model, size, head, preprocessing, where it came from.

PATH is whatever `vit-jax convert` reads: a file, a directory of Hugging Face or Orbax, the workdir
of a run, an address, or a repository of the hub, hf://ORGANISATION/NAME[@REVISION][/FILE].
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError, some

if TYPE_CHECKING:
    from vit_jax.checkpoint import Facts


# What a config says beside the fields of a model.
_BESIDE = ("family", "model_name", "channels", "length")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file or a directory")
    parser.add_argument("--model", metavar="NAME", help="model in it, where it is not clear")
    common.add_part_option(parser)
    common.add_source_size_option(parser)
    common.add_allow_option(parser)
    parser.add_argument("--tensors", action="store_true", help="list the parameters too")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    from vit_jax import checkpoint

    found = checkpoint.identify(
        args.path,
        args.model,
        image_size=args.image_size,
        part=args.part,
        allow=args.allow,
        every_number=True,
    )
    found.require_size(args.image_size)
    if args.json:
        fields = found.to_dict()
        if not args.tensors:
            del fields["tensors"]
        common.print_json(fields)
        _require_usable(found, args.allow)
        return
    for name, text in facts(found):
        print(f"{name:<12}{text}")
    if args.tensors:
        rows = [
            [name, " × ".join(map(str, spec.shape)) or "scalar", spec.dtype.name]
            for name, spec in found.tensors.items()
        ]
        common.print_table(("parameter", "shape", "dtype"), rows)
    _require_usable(found, args.allow)


def _require_usable(found: "Facts", allow: list[str]) -> None:
    """What is an error wherever the weights are used is one here."""
    from vit_jax.allow import NOT_FINITE
    from vit_jax.checkpoint import facts as known

    if found.not_finite and NOT_FINITE not in allow:
        known.require_finite(found.path, found.not_finite)
    if found.candidates:
        raise UserError(f"{found.path!r}: {found.undecided}")
    if found.other_function:
        raise UserError(f"{found.path!r}: {found.other_function}")


def facts(found: "Facts") -> Iterator[tuple[str, str]]:
    """The known facts as pairs (name, text), without the facts that the file does not tell."""
    yield "format", f"{found.format}, layout {found.layout}"
    yield "model", " or ".join(found.models) or _sizes(found.config)
    dtypes = ", ".join(f"{dtype} × {n}" for dtype, n in found.dtypes.items())
    yield "parameters", f"{found.num_params:,} in {len(found.tensors)} tensors ({dtypes})"
    if found.grid:
        method = found.resize_method
        resized = f", resized by the method {method!r}" if method else ""
        yield "positions", f"a grid of {found.grid[0]} × {found.grid[1]} patches{resized}"
    if found.image_size:
        yield "image size", f"{found.image_size[0]} × {found.image_size[1]} pixels"
    if found.config is not None:
        yield from _outputs(found, found.config)
    if found.class_names:
        yield "classes", some(found.class_names)
    if found.preprocess and (found.image_size or not found.text):
        yield "images", _images(found.preprocess, found.image_size)
    if found.text:
        yield "texts", _texts(found.text)
    if found.origin:
        yield "source", found.origin
    if found.licence:
        yield "licence", found.licence
    if found.skipped:
        yield (
            "skipped",
            f"{len(found.skipped)} that are no parameters: {some(found.skipped, 2)}",
        )
    for text in found.ambiguous:
        yield "open", text
    if found.not_finite:
        from vit_jax.checkpoint.facts import not_finite

        yield "warning", not_finite(found.not_finite)
    if found.head_is_zero:
        yield "warning", "a head of zeros tells no classes apart: do not predict with it"
    for name, count in (found.zero_biases or {}).items():
        yield "zeros", f"{name}: all {count} biases" if count > 1 else name
    for text in found.notes:
        yield "note", text
    if found.undecided and not found.candidates:
        yield "note", f"no model of ours: {found.undecided}"
    for record in _history(found):
        yield "made from", record


def _sizes(config: dict[str, Any] | None) -> str:
    if config is None:
        return "unknown"
    from vit_jax.families.registry import get

    told = {k: v for k, v in config.items() if k not in _BESIDE and v}
    nested = told.pop("transformer", {})
    sizes = ", ".join(f"{name} {_plain(value)}" for name, value in {**told, **nested}.items())
    return f"{get(config).title} of sizes of its own: {sizes}"


def _plain(value: Any) -> str:
    """A field's value for people: a patch's sides as 16×16."""
    if isinstance(value, dict) and set(value) == {"size"}:
        return "×".join(map(str, value["size"]))
    return str(value)


def _outputs(found: "Facts", config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What it gives: its towers, or its head."""
    from vit_jax.families.registry import get

    parts = get(config).parts(config)
    for branch, part in parts.items():
        outputs = found.shapes.get(f"{branch}/head/kernel")
        head = "no head" if outputs is None else f"a head of {outputs[-1]} outputs"
        yield f"tower {branch}", f"{get(part).title}, {head}"
    if not parts:
        yield "head", _head(found)


def _head(found: "Facts") -> str:
    if not found.num_classes:
        return "none"
    zero = ", all zero: not trained" if found.head_is_zero else ""
    return f"{found.num_classes:,} classes{zero}"


def _images(preprocess: Any, image_size: tuple[int, int] | None) -> str:
    p = preprocess
    size = "size unknown" if image_size is None else "×".join(map(str, image_size)) + " px"
    size = size if p.channels == 3 else f"{size} of {p.channels} channels"
    how = "squashed" if p.resize == "squash" else "shorter side resized"
    crop = f", centre {p.crop:.4g} kept" if p.crop != 1 else ""
    smooth = "antialiased" if p.antialias else "not antialiased"
    smooth += ", cut off to whole numbers" if p.truncate else ""
    mean, std = (" ".join(f"{x:.4g}" for x in xs) for xs in (p.mean, p.std))
    return f"{size}, {how}{crop}, {p.method}, {smooth}; mean {mean}, std {std}"


def _texts(text: Any) -> str:
    vocabulary = f", vocabulary {text.vocabulary}" if text.vocabulary else ""
    return f"{text.length} tokens, tokenizer {text.kind}{vocabulary}"


def _history(found: "Facts") -> Iterator[str]:
    """The conversions that the file records, newest first; malformed records are left out."""
    for record in reversed(found.history):
        try:
            source, steps = record["source"], record["steps"]
            done = "".join(f"; {step}" for step in steps)
            done += "".join(f"; note: {note}" for note in record.get("notes", ()))
            name = source.get("origin", source["file"])
            yield (
                f"{name} ({source['format']}, {source['layout']}) by {record['tool']}"
                f"{done}; sha256 {source['sha256']}"
            )
        except (KeyError, TypeError):
            continue

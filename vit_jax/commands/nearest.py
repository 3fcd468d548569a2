"""Find the images most like given ones among features that `vit-jax embed` has written.

DIR is a folder of embeddings; what is finished of it is searched. The given images go through the
model that made them, which is read from where it lay then, or from --weights. Likeness is the
cosine of two vectors, 1 for the same image.

  vit-jax nearest features photo.jpg --k 8 --sheet like-photo.png
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.evaluate.embeddings.neighbours import Neighbour
    from vit_jax.evaluate.embeddings.table import Embeddings
    from vit_jax.loaded import Loaded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="what `vit-jax embed` has written")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, lists, or -")
    parser.add_argument("--k", type=int, default=8, metavar="N", help="how many of each (8)")
    parser.add_argument("--sheet", metavar="FILE.png", help="a picture of them to draw")
    parser.add_argument("--weights", metavar="MODEL", help="where the model lies now")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    from vit_jax.evaluate.embeddings import neighbours, sheet
    from vit_jax.evaluate.embeddings.table import Embeddings
    from vit_jax.input_pipeline.inputs import image_paths

    if args.k < 1:
        raise UserError(f"--k must be at least 1; got {args.k}")
    if args.sheet is not None:
        sheet.check(args.sheet)
    embeddings, paths = Embeddings.open(args.folder), image_paths(args.images)
    if "features" not in embeddings.manifest.vectors:
        raise UserError(f"{args.folder} has no features: embed with --what features")
    model = _model(args, embeddings)
    if embeddings.missing:
        print(f"warning: {embeddings.missing}", file=sys.stderr)
    found = neighbours.nearest(embeddings, model.features(paths), args.k)
    _print(args, paths, found)
    if args.sheet is not None:
        _draw(args, embeddings, model, paths, found)


def _model(args: argparse.Namespace, embeddings: "Embeddings") -> "Loaded":
    """The model that made the embeddings."""
    from vit_jax import loaded
    from vit_jax.evaluate.embeddings import embedder

    known = embeddings.manifest.model
    path = args.weights or known["path"]
    try:
        size = known["how"]["image_size"]
        model = loaded.load(path, **{**known["how"], "image_size": size and tuple(size)})
    except UserError as error:
        message = str(error).removesuffix(".")
        raise UserError(
            f"{message}. --weights MODEL says where the model of {args.folder} lies now"
        ) from error
    if embedder.digest(model.variables, model.weights.model.config) != known["weights"]:
        raise UserError(
            f"{path} is not the model that {args.folder} was made with: its parameters are others. "
            "Name that one by --weights MODEL"
        )
    return model


def _print(args: argparse.Namespace, paths: list[str], found: "list[list[Neighbour]]") -> None:
    if args.json:
        pairs = zip(paths, found, strict=True)
        common.print_json([{"image": p, "nearest": [vars(n) for n in near]} for p, near in pairs])
        return
    for path, near in zip(paths, found, strict=True):
        print(path)
        rows = [(f"{n.similarity:.4f}", n.key, n.classes) for n in near]
        common.print_table((">similarity", "image", "class"), rows)


def _draw(
    args: argparse.Namespace,
    embeddings: "Embeddings",
    model: "Loaded",
    paths: list[str],
    found: "list[list[Neighbour]]",
) -> None:
    from vit_jax.evaluate.embeddings import neighbours, sheet
    from vit_jax.input_pipeline.records import read_image

    pictures = neighbours.Pictures(embeddings)

    def tile(record: Any, title: str) -> sheet.Tile:
        name = record["name"].replace("\\", "/").rpartition("/")[2]
        return sheet.Tile(model.reader.decode(record), title, name)

    rows = []
    for path, near in zip(paths, found, strict=True):
        query = tile({"image": read_image(path), "name": path}, "asked for")
        titles = [f"{n.similarity:.3f} {n.classes}".strip() for n in near]
        drawn = [tile(pictures.record(n), t) for n, t in zip(near, titles, strict=True)]
        rows.append([query, *drawn])
    sheet.draw(rows, args.sheet)
    print(f"drawn to {args.sheet}", file=sys.stderr)

"""Draw what a model's attention looks at in images.

MODEL is the workdir of a run or a checkpoint. --show says what is drawn:
  maps       attention of chosen layers and heads over each image
  rollout    attention through all layers and around them, by Abnar and Zuidema (2020)
  distance   how far each head looks, by depth
  positions  how much alike the learned positions of patches are (no image needed)
  filters    principal components of the filters that read the pixels (no image needed)

  vit-jax attention RUN photo.jpg -o attention.png --layers 0,5,11 --heads mean
  vit-jax attention RUN photo.jpg -o patch.png --query 3,7
  vit-jax attention RUN photo.jpg -o rollout.npz --show rollout

The query is the class token where there is one, otherwise the mean over all tokens. Class tokens
and registers are left out of the maps. A file in .npz gets the numbers instead of a picture. How
much alike tokens become by depth says `vit-jax tokens`.
"""

import argparse
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError, suggest

if TYPE_CHECKING:
    import numpy as np

    from vit_jax.evaluate.looking import Look
    from vit_jax.loaded import Loaded

KINDS = ("maps", "rollout", "distance", "positions", "filters")
_OF_IMAGES = KINDS[:3]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders, lists, or -")
    parser.add_argument(
        "-o", "--out", required=True, metavar="FILE", help="a .png or .svg, or numbers in a .npz"
    )
    parser.add_argument(
        "--show", default="maps", metavar="|".join(KINDS), help="what is drawn (maps)"
    )
    parser.add_argument(
        "--layers", default="last", metavar="last|all|N,…", help="of maps, from 0 (last)"
    )
    parser.add_argument(
        "--heads", default="mean", metavar="mean|all|N,…", help="of maps, from 0 (mean)"
    )
    parser.add_argument(
        "--query",
        type=_query,
        metavar="class|mean|ROW,COLUMN",
        help="whose attention: the class token's, all tokens', or a patch's",
    )
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    from vit_jax import loaded
    from vit_jax.evaluate import attention_figures
    from vit_jax.input_pipeline.inputs import image_paths

    if args.show not in KINDS:
        raise UserError(
            f"--show {args.show!r} is unknown.{suggest(args.show, KINDS)} Known: {', '.join(KINDS)}"
        )
    if args.show in _OF_IMAGES and not args.images:
        raise UserError(f"--show {args.show} needs an image or more")
    if not args.out.endswith(".npz"):
        attention_figures.check(args.out)
    paths = image_paths(args.images) if args.show in _OF_IMAGES else []
    model = loaded.load(
        common.checkpoint(args.model_path, args.checkpoint),
        args.model,
        part=args.part,
        image_size=args.image_size,
        allow=args.allow,
    )
    numbers = _DRAWN[args.show](args, model, paths)
    if args.out.endswith(".npz"):
        _save(args.out, numbers)
    if args.json:
        common.print_json({name: x.tolist() for name, x in numbers.items()})
    else:
        print(args.out)


def _maps(args: argparse.Namespace, model: "Loaded", paths: list[str]) -> "dict[str, np.ndarray]":
    from vit_jax.evaluate.attention import map_of

    rows = []
    for look in model.attention(paths):
        names = list(look.weights)
        maps = {}
        for layer in _chosen(args.layers, len(names), "layer", last=True):
            weights = look.weights[names[layer]]
            shown = map_of(weights, look.grid, look.query(args.query, weights))
            if args.heads == "mean":
                maps[f"layer {layer}"] = shown.mean(axis=0)
                continue
            for head in _chosen(args.heads, len(shown), "head"):
                maps[f"layer {layer}, head {head}"] = shown[head]
        rows.append((look, maps))
    return _drawn_maps(args, paths, rows)


def _rollout(
    args: argparse.Namespace, model: "Loaded", paths: list[str]
) -> "dict[str, np.ndarray]":
    looks = model.attention(paths)
    return _drawn_maps(
        args, paths, [(look, {"rollout": look.rollout(args.query)}) for look in looks]
    )


def _drawn_maps(
    args: argparse.Namespace, paths: list[str], rows: "list[tuple[Look, dict[str, np.ndarray]]]"
) -> "dict[str, np.ndarray]":
    from vit_jax.evaluate import attention_figures

    if not args.out.endswith(".npz"):
        mark = args.query if isinstance(args.query, tuple) else None
        attention_figures.draw_maps([(look.picture, maps) for look, maps in rows], args.out, mark)
    pairs = zip(paths, rows, strict=True)
    return {f"{path}: {title}": x for path, (_, maps) in pairs for title, x in maps.items()}


def _distance(
    args: argparse.Namespace, model: "Loaded", paths: list[str]
) -> "dict[str, np.ndarray]":
    import numpy as np

    from vit_jax.evaluate import attention_figures

    each = [look.distances() for look in model.attention(paths)]
    mean = {path: np.mean([x[path] for x in each], axis=0) for path in each[0]}
    if not mean:
        raise UserError("no layer in which all tokens ask: there are no distances")
    if not args.out.endswith(".npz"):
        attention_figures.draw_distances(mean, args.out)
    return mean


def _positions(
    args: argparse.Namespace, model: "Loaded", paths: list[str]
) -> "dict[str, np.ndarray]":
    from vit_jax.evaluate import attention, attention_figures, looking
    from vit_jax.families.registry import get

    tensors, config = looking.tensors(model), looking.tower(model)[1]
    found = [x for name, x in tensors.items() if name.rpartition("/")[2] == "pos_embedding"]
    size, stride = model.weights.model.image_size, get(config).stride
    if len(found) != 1 or size is None or stride is None:
        raise UserError(f"{model.name} has no one table of positions of a grid of patches")
    grid = (size[0] // stride(config)[0], size[1] // stride(config)[1])
    table = found[0].reshape(-1, found[0].shape[-1])[-grid[0] * grid[1] :]
    similarity = attention.cosines(table)
    if not args.out.endswith(".npz"):
        attention_figures.draw_positions(similarity, grid, args.out)
    return {"similarity": similarity}


def _filters(
    args: argparse.Namespace, model: "Loaded", paths: list[str]
) -> "dict[str, np.ndarray]":
    from vit_jax.evaluate import attention, attention_figures, looking
    from vit_jax.families.registry import get

    tensors, config = looking.tensors(model), looking.tower(model)[1]
    kernels = [tensors[name] for name in get(config).stem(config) if name in tensors]
    if len(kernels) != 1 or kernels[0].ndim != 4 or kernels[0].shape[2] not in (1, 3):
        raise UserError(f"{model.name} has no one layer of filters that read an image's colours")
    filters = attention.principal_filters(kernels[0])
    if not args.out.endswith(".npz"):
        attention_figures.draw_filters(filters, args.out)
    return {"filters": filters}


_DRAWN = dict(zip(KINDS, (_maps, _rollout, _distance, _positions, _filters), strict=True))


def _save(out: str, numbers: "dict[str, Any]") -> None:
    import numpy as np

    from vit_jax.checkpoint.files.archive import replacing

    with replacing(out) as file:
        np.savez_compressed(file, **{name.replace("/", "."): x for name, x in numbers.items()})


def _query(text: str) -> str | tuple[int, int]:
    row, comma, column = text.partition(",")
    if comma and row.isdecimal() and column.isdecimal():
        return int(row), int(column)
    if text in ("class", "mean"):
        return text
    raise argparse.ArgumentTypeError(f"expected class, mean or ROW,COLUMN; got {text!r}")


def _chosen(text: str, count: int, what: str, last: bool = False) -> list[int]:
    """The numbers of layers or heads that an argument means."""
    if text == "all":
        return list(range(count))
    if text == "last" and last:
        return [count - 1]
    numbers = text.split(",")
    if not all(n.isdecimal() and int(n) < count for n in numbers):
        raise UserError(
            f"no {what}s {text!r}: expected numbers from 0 to {count - 1}, with commas, or all"
        )
    return [int(n) for n in numbers]

"""Write the features of images, of millions of them, to a folder of Parquet or NumPy files.

MODEL is the workdir of a run or a checkpoint. DATA is what `vit-jax predict` takes: files, folders,
lists of paths, `-`, tar files of samples, a table, or a dataset by its path or its TFDS name. Where
it has labels they are written too; the subfolders of a folder that holds nothing else are classes.

  vit-jax embed RUN photos/ --out features
  vit-jax embed dinov2.safetensors 'shards/{000..146}.tar' --out features --what features,tokens
  vit-jax embed RUN imagenet2012 --split validation --out features --batch 128

All devices of this machine share each batch; on several machines, or for several processes on one,
start the same command in each, as for `vit-jax train`. Stopped at any time, the same command goes
on behind the shards that are finished, with any number of processes: each example is written once.
Finished shards can be read meanwhile. `vit-jax probe` and `vit-jax nearest` read them, and so does
all that reads Parquet. An image that cannot be read is left out, and named.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vit_jax import stores
from vit_jax.commands import common
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.evaluate.embeddings.embedder import Embedder
    from vit_jax.evaluate.embeddings.folder import Folder, Manifest
    from vit_jax.input_pipeline.records import Source

_MOST_NAMED = 10  # images that could not be read that are named on stderr
_LOOK = 0.5  # seconds between two looks at what other processes have finished


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument("data", nargs="+", metavar="DATA", help="the images, see above")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--what",
        default="features",
        metavar="KIND,…",
        help="features (what the head would get; of two towers the image's vector), tokens (the "
        "patches' after the last norm); or text (of two towers: DATA are files of one text a line)",
    )
    parser.add_argument(
        "--vocabulary", metavar="FILE", help="of the tokenizer of texts (what the weights say)"
    )
    parser.add_argument("--split", help="of the dataset (test; of a file, all that is in it)")
    parser.add_argument("--tfds-data-dir", metavar="DIR", help="where TFDS keeps its datasets")
    parser.add_argument("--format", default="parquet", metavar="parquet|npy", help="(parquet)")
    parser.add_argument(
        "--dtype", default="float32", metavar="float32|float16", help="of the numbers (float32)"
    )
    parser.add_argument(
        "--batch", type=int, default=32, metavar="N", help="images at once on each device (32)"
    )
    parser.add_argument(
        "--shard-size", type=int, default=8192, metavar="N", help="examples of a shard (8192)"
    )
    parser.add_argument(
        "--on-error",
        default="skip",
        metavar="skip|raise",
        help="what an image that cannot be read is: left out and named (skip), or the end (raise)",
    )
    common.add_process_options(parser)
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    _check(args)
    try:
        _run(args)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on behind the finished shards") from None


def _check(args: argparse.Namespace) -> None:
    from vit_jax.evaluate.embeddings import embedder, shards

    for name in ("batch", "shard_size"):
        if (value := getattr(args, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1; got {value}")
    for name, known in (("on_error", ("skip", "raise")), ("dtype", embedder.DTYPES)):
        if (value := getattr(args, name)) not in known:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} must be {' or '.join(known)}; got {value!r}")
    embedder.check_kinds(args.what.split(","))
    shards.check_format(args.format)


def _run(args: argparse.Namespace) -> None:
    from vit_jax.evaluate.embeddings.folder import Folder
    from vit_jax.input_pipeline import inputs

    common.join_processes(args)

    import jax

    from vit_jax.devices import compilation_cache, peers

    compilation_cache.enable()
    began = time.monotonic()
    with peers.told():
        source: Any
        if args.what == "text":
            source = inputs.open_texts(args.data)
        else:
            source = inputs.open_images(
                args.data, args.split, data_dir=args.tfds_data_dir, labels=True
            )
        embedder, model = _embedder(args)
        manifest, folder = _manifest(args, embedder, model, source), Folder(args.out)
        left = _agreed(folder, manifest)
        _embed(args, embedder, source, folder, manifest, left)
    if jax.process_index() == 0:
        _report(args, folder, manifest, manifest.count(left), time.monotonic() - began)


def _embedder(args: argparse.Namespace) -> "tuple[Embedder, dict[str, Any]]":
    """The model, and what the manifest says of it."""
    from vit_jax import loaded
    from vit_jax.evaluate.embeddings.embedder import Embedder, TextEmbedder

    path = common.checkpoint(args.model_path, args.checkpoint)
    names = ("model", "part", "image_size", "allow", "vocabulary")
    how = {name: getattr(args, name) for name in names}
    model = loaded.load(path, **how)
    kinds = tuple(args.what.split(","))
    embedder = (TextEmbedder if args.what == "text" else Embedder)(model, kinds, args.dtype)
    path = stores.absolute(path) if stores.exists(path) else path
    return embedder, {"path": path, "how": how, **embedder.description()}


def _manifest(
    args: argparse.Namespace, embedder: "Embedder", model: dict[str, Any], source: "Source"
) -> "Manifest":
    from vit_jax.evaluate.embeddings import writing
    from vit_jax.evaluate.embeddings.folder import Manifest

    places = {name: getattr(args, name) for name in ("split", "tfds_data_dir")}
    data = {"inputs": args.data, **places, **writing.describe(source)}
    return Manifest(model, data, embedder.shapes, args.dtype, args.format, args.shard_size)


def _agreed(folder: "Folder", manifest: "Manifest") -> list[int]:
    """Makes the folder one of this manifest; the shards that are to be written, for all processes.

    Process 0 says which are finished: each process would find others when it looks.
    """
    from vit_jax.devices import peers

    def begin() -> str:
        if not folder.exists():
            folder.begin(manifest)
        folder.require(manifest)
        finished = set(folder.finished())
        return json.dumps([k for k in range(manifest.shards) if k not in finished])

    left = json.loads(peers.said_by_first("vit_jax/embed", begin))
    folder.require(manifest)
    return left


def _embed(
    args: argparse.Namespace,
    embedder: "Embedder",
    source: "Source",
    folder: "Folder",
    manifest: "Manifest",
    left: list[int],
) -> None:
    """Writes this process's share of the shards that are left, and waits for the others'."""
    import jax

    from vit_jax.evaluate.embeddings import writing

    process, processes = jax.process_index(), jax.process_count()
    mine, total = left[process::processes], manifest.count(left)
    of_these = set(left) - set(mine)
    own = writing.embed(
        embedder,
        source,
        folder,
        manifest,
        mine,
        batch=args.batch * embedder.devices,
        on_error=args.on_error,
    )

    def of_others() -> int:
        return manifest.count(of_these & set(folder.finished()))

    every = _of_all(own, of_others, total) if processes > 1 else own
    if process == 0 and total:
        done = manifest.examples - total
        what = "embedding" if not done else f"embedding behind {done:,} done before"
        every = common.shown(every, total, what, "images")
    for _ in every:
        pass


def _of_all(own: Iterator[Any], of_others: Callable[[], int], total: int) -> Iterator[None]:
    """An item for each example that any process writes, until `total` are written.

    Args:
      own: An item for each that this process writes.
      of_others: How many the others have written by now.
    """
    told, others, looked = 0, 0, time.monotonic()
    for _ in own:
        told += 1
        yield
        if time.monotonic() - looked > _LOOK:
            found, looked = of_others(), time.monotonic()
            yield from [None] * (found - others)
            others = found
    # Who is done waits, and with it the JAX of this process, so that none ends without the others.
    while told + others < total:
        time.sleep(_LOOK)
        found = of_others()
        yield from [None] * (found - others)
        others = found


def _report(
    args: argparse.Namespace, folder: "Folder", manifest: "Manifest", written: int, seconds: float
) -> None:
    """Says what was written, and which images could not be read."""
    entries = [folder.entry(shard) for shard in folder.finished()]
    left_out = [error for entry in entries for _, _, error in entry.left_out]
    if len(left_out) == manifest.examples:
        raise UserError(f"none of the {manifest.examples:,} images could be read: {left_out[0]}")
    result = {
        "out": args.out,
        "examples": manifest.examples,
        "rows": sum(entry.rows for entry in entries),
        "left_out": len(left_out),
        "shards": manifest.shards,
        "vectors": dict(manifest.vectors),
        "written_now": written,
        "seconds": round(seconds, 1),
    }
    if left_out:
        print(f"{len(left_out)} images could not be read and are left out:", file=sys.stderr)
        for error in left_out[:_MOST_NAMED]:
            print(f"  {error}", file=sys.stderr)
        if len(left_out) > _MOST_NAMED:
            print(
                f"  … and {len(left_out) - _MOST_NAMED} more, see {args.out}/_journal",
                file=sys.stderr,
            )
    if args.json:
        common.print_json(result)
        return
    shapes = ", ".join(f"{k} {' × '.join(map(str, v))}" for k, v in manifest.vectors.items())
    print(
        f"{result['rows']:,} of {manifest.examples:,} examples in {manifest.shards} shards in "
        f"{args.out}: {shapes}"
    )

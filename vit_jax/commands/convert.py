"""Convert a checkpoint to another format, tensor by tensor; what was done is printed and recorded.

SRC is a file (official or big_vision .npz, safetensors, PyTorch, Flax), a directory (Hugging
Face, Orbax) or the workdir of a run; its format and model are recognised. DST appears whole or
not at all. Only the options change numbers, each by a step that DST records.
"""

import argparse
import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vit_jax import stores, waiting
from vit_jax.commands import common
from vit_jax.errors import UserError, some, suggest

if TYPE_CHECKING:
    from vit_jax.checkpoint import Conversion


LORA = "lora"
# The options that change what is written.
_CHANGES = (
    "merge",
    "image_size",
    "resize_method",
    "num_classes",
    "channels",
    "patch_size",
    "drop_pre_logits",
    "dtype",
    "part",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", help="weights to read")
    parser.add_argument("dst", metavar="DST", help="file or directory to write")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="format of DST: official, big_vision, orbax, timm, hf, or another that the model's "
        "family has, such as torch, tlt or vit_pytorch; lora writes the adapters of a run alone",
    )
    parser.add_argument(
        "--merge",
        metavar="BASE",
        help="SRC holds adapters, as --to lora writes them: merge them into BASE, the checkpoint "
        "that their run started from",
    )
    parser.add_argument("--model", metavar="NAME", help="model in SRC, where it is not clear")
    common.add_checkpoint_option(parser)
    common.add_part_option(parser)
    common.add_allow_option(parser)
    parser.add_argument(
        "--image-size",
        type=common.image_size,
        metavar="N|HxW",
        help="pixels for which position embeddings are resized; where nothing in SRC tells how its "
        "patches lie and as many fit, how they lie",
    )
    parser.add_argument(
        "--resize-method",
        metavar="NAME",
        help="how: official, timm, bilinear or bicubic (PyTorch's without antialiasing, as in "
        "transformers), or dino (default: that of the family's own code, which inspect tells)",
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="a new head of zeros; 0: none")
    parser.add_argument(
        "--channels",
        type=int,
        metavar="N",
        help="channels of the images to fit the weights to, as timm does it",
    )
    parser.add_argument(
        "--patch-size",
        type=common.image_size,
        metavar="N|HxW",
        help="pixels of a patch, as in FlexiViT: the kernel that reads it is resampled; as many "
        "patches make another image size, unless --image-size asks for one",
    )
    parser.add_argument(
        "--drop-pre-logits",
        action="store_true",
        help="drop the layer before the head, and the head that reads it",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="cast to")


def run(args: argparse.Namespace) -> None:
    if args.to == LORA:
        _write_adapters(args)
    elif args.merge:
        from vit_jax.train import adapters

        with adapters.merged(args.src, args.merge) as whole:
            _convert(args, str(whole))
    else:
        _convert(args, args.src)


def _write_adapters(args: argparse.Namespace) -> None:
    from vit_jax.train import adapters

    if pathlib.Path(args.dst).suffix != ".safetensors":
        raise UserError(f"--to {LORA} writes .safetensors files; got DST {args.dst!r}")
    given = [name for name in _CHANGES if getattr(args, name) not in (None, False, ())]
    if given:
        raise UserError(
            f"--to {LORA} writes adapters as they are, without --{given[0].replace('_', '-')}; "
            "change the merged model, by --merge"
        )
    chosen = pathlib.PurePath(common.checkpoint(args.src, args.checkpoint)).name
    step = None if args.checkpoint is None else int(chosen.rpartition("_")[2])
    count = adapters.write(args.src, args.dst, step)
    print(f"{count:,} parameters written to {args.dst}; merge them by convert --merge BASE")


def _convert(args: argparse.Namespace, source: str) -> None:
    from vit_jax.checkpoint import convert, targets
    from vit_jax.families.resize import METHODS

    if args.resize_method not in (None, *METHODS):
        raise UserError(
            f"unknown --resize-method {args.resize_method!r}."
            f"{suggest(args.resize_method, METHODS)} Known: {', '.join(METHODS)}"
        )
    src, dst = pathlib.Path(args.src), pathlib.Path(args.dst)
    suffixes = targets.target_of(args.to).suffixes
    if suffixes and dst.suffix not in suffixes:
        raise UserError(
            f"--to {args.to} writes {' or '.join(suffixes)} files; got DST {args.dst!r}"
        )
    same = src.exists() and dst.exists() and src.samefile(dst)
    if same or (stores.address(args.src) or src) == (stores.address(args.dst) or dst):
        raise UserError(f"SRC and DST are the same file, {args.dst!r}")

    with _progress() as progress:
        done = convert(
            common.checkpoint(source, args.checkpoint),
            dst,
            to=args.to,
            model=args.model,
            image_size=args.image_size,
            resize_method=args.resize_method,
            num_classes=args.num_classes,
            drop_pre_logits=args.drop_pre_logits,
            channels=args.channels,
            patch_size=args.patch_size,
            dtype=args.dtype,
            part=args.part,
            allow=args.allow,
            progress=progress,
        )
    for name, text in _report(done):
        print(f"{name:<10}{text}")
    print(f"{done.model}: {done.num_params:,} parameters written to {args.dst}")


def _report(done: "Conversion") -> Iterator[tuple[str, str]]:
    """What a user should know of a conversion, line by line."""
    yield "read", f"{done.source_format}, layout {done.source_layout}"
    for step in done.steps:
        yield "step", step
    if done.dropped:
        yield "dropped", some(done.dropped)
    if done.skipped:
        yield (
            "skipped",
            f"{len(done.skipped)} that are no parameters: {some(done.skipped, 2)}",
        )
    for name, count in done.not_finite.items():
        yield "warning", f"{name} holds {count} numbers that are NaN or infinite"
    for note in done.notes:
        yield "note", note


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on stderr when that is a terminal."""
    import rich.progress

    console = waiting.console(stderr=True)
    columns = (
        rich.progress.TextColumn("converting"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("converting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

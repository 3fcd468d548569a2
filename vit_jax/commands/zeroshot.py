"""Classify images by what their classes are called, with a model of two towers (LiT, SigLIP, CLIP).

The classes are texts: names, put into prompts such as `a photo of a {}.`. With IMAGE, the command
writes the likeliest classes of each image, as `vit-jax predict` does; with --dataset, how many of
its images are right; with --dataset and --retrieval, how often the images and captions of a dataset
find one another. A damaged image of a dataset ends the command, or is skipped.

  vit-jax zeroshot --model LiT-B16B --weights LiT-B16B.npz --classes cat,dog photos/
  vit-jax zeroshot --model LiT-B16B --weights LiT-B16B.npz --dataset cifar100
  vit-jax zeroshot --model LiT-B16B --weights LiT-B16B.npz --dataset captions.csv --retrieval
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_jax import stores
from vit_jax.commands import common, eval, predict
from vit_jax.errors import UserError, chosen
from vit_jax.evaluate import zeroshot

if TYPE_CHECKING:
    from vit_jax.two_towers import Follow, TwoTowers, ZeroShot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="NAME", help="such as LiT-B16B, where the weights do not tell it"
    )
    parser.add_argument(
        "--weights",
        dest="model_path",
        metavar="FILE",
        help="path or address of a checkpoint, or a run's workdir (what was published of --model)",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="path or address of the tokenizer's vocabulary (what the weights say)",
    )
    common.add_checkpoint_option(parser)
    common.add_part_option(parser)
    common.add_source_size_option(parser)
    common.add_allow_option(parser)
    parser.add_argument(
        "--classes",
        metavar="FILE|A,B,…",
        help="names of the classes: a file with one a line, or several with commas between (with "
        "--dataset: those of its classes)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE|NAME",
        help="a file of texts with {} for the name, one a line, or one of "
        f"{', '.join(zeroshot.PROMPTS)} (those of --average)",
    )
    parser.add_argument(
        "--average",
        default="big_vision",
        metavar="NAME",
        help="how the texts of a class become one: big_vision, as in LiT's published figures "
        "(without punctuation and capitals, 81 prompts, the average made a unit vector), clip, as "
        "in CLIP's (as it is written, 80 prompts, a unit vector), or colab, as in the original's "
        "notebook (as it is written, 8 prompts, the average itself)",
    )
    parser.add_argument(
        "--retrieval", action="store_true", help="the dataset has captions: recall at 1, 5 and 10"
    )
    predict.add_image_arguments(parser)
    parser.set_defaults(on_error=None)
    eval.add_label_arguments(parser)
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    _check(args)
    if args.dataset is None:
        args.on_error = args.on_error or "report"
        names, prompts = _classes(args.classes), _prompts(args.prompts)
        predict.classify(args, lambda: _told(_classifier(args, names, prompts)))
        return
    args.on_error = args.on_error or "raise"
    result = {"model": args.model or args.model_path, "dataset": args.dataset, "split": args.split}
    if args.retrieval:
        _print_recall(args, result | _retrieval(args))
    else:
        eval.print_result(args, result | _accuracy(args))


def _check(args: argparse.Namespace) -> None:
    chosen(args.average, zeroshot.AVERAGES, "--average")
    if args.batch < 1:
        raise UserError(f"--batch must be at least 1; got {args.batch}")
    if args.dataset is None:
        for name in ("retrieval", "by_position", "real_labels", "split"):
            if getattr(args, name):
                raise UserError(f"--{name.replace('_', '-')} needs a --dataset")
        return
    if args.images:
        raise UserError("name images or a --dataset, not both")
    for name in ("top", "format", "output", "columns"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is for images; of a --dataset there are figures only")
    if args.on_error not in (None, "raise", "skip"):
        raise UserError(f"--on-error must be raise or skip with --dataset; got {args.on_error!r}")
    if args.retrieval:
        for name in ("classes", "prompts", "by_position", "real_labels"):
            if getattr(args, name):
                raise UserError(f"--{name.replace('_', '-')} is for classes, not for --retrieval")


# --- the model ------------------------------------------------------------------------------------


def _towers(args: argparse.Namespace) -> "TwoTowers":
    from vit_jax import two_towers

    path = args.model_path or _published(args.model)
    return two_towers.load_two_towers(
        common.checkpoint(path, args.checkpoint),
        args.model,
        vocabulary=args.vocabulary,
        part=args.part,
        image_size=args.image_size,
        allow=args.allow,
    )


def _published(model: str | None) -> str:
    """Where the published weights of a model are."""
    from vit_jax.families.registry import resolve

    source = "" if model is None else resolve(model).weights.source
    if not source:
        raise UserError(
            "--weights FILE says where the weights of the model are; it is missing"
            + ("" if model is None else f", and none of {model} are known to be published")
        )
    return source


def _classifier(
    args: argparse.Namespace, names: Sequence[str], prompts: Sequence[str] | None
) -> "ZeroShot":
    return _towers(args).zero_shot(names, prompts, args.average, _bar("reading prompts"))


def _told(classifier: "ZeroShot") -> "ZeroShot":
    """The classifier, after saying which probabilities it gives."""
    kind = (
        "of each class on its own, sigmoid(t zimg·ztxt + b): they need not add up to 1"
        if classifier.is_sigmoid
        else "among the classes, a softmax of t zimg·ztxt: they add up to 1"
    )
    print(f"probabilities {kind}", file=sys.stderr)
    return classifier


def _bar(what: str) -> "Follow":
    return lambda batches: common.progress(batches, len(batches), what)


def _classes(given: str | None) -> list[str]:
    if given is None:
        raise UserError(
            "--classes FILE or --classes A,B,… says what the images may be; it is missing"
        )
    if "," in given and not stores.is_file(given):
        return [name.strip() for name in given.split(",")]
    return _lines(given, "classes", "names with commas between them")


def _prompts(given: str | None) -> Sequence[str] | None:
    if given is None:
        return None
    if given in zeroshot.PROMPTS:
        return zeroshot.PROMPTS[given]()
    return _lines(given, "prompts", f"one of {', '.join(zeroshot.PROMPTS)}")


def _lines(path: str, what: str, otherwise: str) -> list[str]:
    """The lines of a file, without empty ones."""
    try:
        text = stores.read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"cannot read the {what} {path!r}: {error.strerror}. Expected a file with one a line, "
            f"or {otherwise}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the {what} {path!r} are no text in UTF-8: {error}") from error
    if not (lines := [line.strip() for line in text.splitlines() if line.strip()]):
        raise UserError(f"the file of {what} {path!r} is empty")
    return lines


# --- over a dataset -------------------------------------------------------------------------------


def _accuracy(args: argparse.Namespace) -> dict[str, Any]:
    prompts = _prompts(args.prompts)
    names = None if args.classes is None else _classes(args.classes)
    source = eval.open_source(args)
    if names is None:
        names = zeroshot.own_names(source)
        args.by_position = True  # they are the dataset's, in its order
    return eval.of_classes(args, _classifier(args, names, prompts), source)


def _retrieval(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from vit_jax.evaluate import predictions, retrieval
    from vit_jax.input_pipeline.captions import open_captions

    source = open_captions(args.dataset, args.split, data_dir=args.tfds_data_dir)
    towers, zimg, texts, image_of, damaged = _towers(args), [], [], [], []
    rows = predictions.rows(towers, predictions.of_source(source), batch=args.batch)
    for read, row in common.progress(rows, len(source), "looking at images"):
        if row is None:
            if args.on_error == "raise":
                raise UserError(read.error)
            damaged.append(read.name)
            continue
        captions = read.beside["captions"]
        texts += captions
        image_of += [len(zimg)] * len(captions)
        zimg.append(row)
    if not zimg:
        raise UserError(f"no image of {source.description} can be read")
    found = retrieval.recall(
        np.stack(zimg), towers.texts(texts, _bar("reading captions")), image_of
    )
    counts = {"num_images": len(zimg), "num_texts": len(texts)}
    return {"read": source.description} | counts | found | common.skipped(args, damaged)


def _print_recall(args: argparse.Namespace, result: dict[str, Any]) -> None:
    from vit_jax.evaluate.retrieval import KS

    if args.json:
        common.print_json(result)
        return
    ways = {"image_to_text": "images to texts", "text_to_image": "texts to images"}
    common.print_table(
        ("", *(f">recall@{k}" for k in KS)),
        [(words, *(f"{result[f'{way}@{k}']:.2%}" for k in KS)) for way, words in ways.items()],
    )
    print(f"{result['read']}: {result['num_images']} images, {result['num_texts']} texts")

"""Writes the samples of a split to shards, and goes on behind the last whole one."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.errors import UserError, short, some
from vit_jax.input_pipeline.decode import DamagedImage, decode_image
from vit_jax.input_pipeline.examples import OnError
from vit_jax.input_pipeline.preparing import descriptions
from vit_jax.input_pipeline.preparing.planning import Plan
from vit_jax.input_pipeline.preparing.samples import Sample, SampleFile

SHARD_BYTES = 2**28

# (samples, how many there are, what is done) -> the same samples, with the progress shown
Watch = Callable[[Iterator[Any], int, str], Iterator[Any]]


@dataclasses.dataclass
class Progress:
    """How far a split is: its whole shards, and the sample behind them.

    Attributes:
      examples, bytes: The number of examples and of their bytes, in each shard.
      file, sample: The number of the file, and in it of the sample, with which the next shard
        begins.
      done: The number of samples behind which that is.
      damaged: The samples that were left out, and why.
    """

    examples: list[int] = dataclasses.field(default_factory=list)
    bytes: list[int] = dataclasses.field(default_factory=list)
    file: int = 0
    sample: int = 0
    done: int = 0
    damaged: list[str] = dataclasses.field(default_factory=list)


def write_split(
    folder: str,
    split: str,
    files: list[SampleFile],
    plan: Plan,
    features: Any,
    on_error: OnError,
    decode: bool,
    watch: Watch,
) -> Progress:
    """Writes what is left of a split to the folder of the unfinished dataset.

    Raises:
      UserError: if a file cannot be read or written, if no sample can be used, and for a bad sample
        if `on_error` is 'raise'.
    """
    place = os.path.join(folder, progress_file(split))
    progress = descriptions.load(Progress, place) if os.path.exists(place) else Progress()
    samples = _from(files, progress.file, progress.sample)
    samples = watch(samples, plan.samples[split] - progress.done, f"writing {split}")
    made = _records(_checked(samples, decode), plan, features, on_error)
    while (shard := _write_shard(part(folder, split, len(progress.examples)), made)) is not None:
        progress = _after(progress, shard)
        descriptions.save(place, vars(progress))
    if not progress.examples:
        raise UserError(
            f"the split {split} has no sample that can be used: {some(progress.damaged)}"
        )
    return progress


# (number of the file, number of the sample in it, the sample)
Numbered = tuple[int, int, Sample]
# What becomes of a sample: its place, the record to write if any, and why there is none.
Made = tuple[int, int, bytes | None, str | None]


def _from(files: list[SampleFile], file: int, sample: int) -> Iterator[Numbered]:
    """All samples from a place on."""
    for number, one in enumerate(files[file:], start=file):
        start = sample if number == file else 0
        for place, found in enumerate(one.read(start), start=start):
            yield number, place, found


def _checked(samples: Iterator[Numbered], decode: bool) -> Iterator[Numbered]:
    """The same samples; threads decode each image, and say what is wrong with it."""

    def check(numbered: Numbered) -> Numbered:
        file, place, sample = numbered
        if sample.problem is None:
            if not sample.image:
                sample = dataclasses.replace(sample, problem="its image has no bytes")
            elif decode:
                try:
                    decode_image(sample.image, "it")
                except DamagedImage as error:
                    sample = dataclasses.replace(sample, problem=str(error))
        return file, place, sample

    count = os.cpu_count() or 1
    ahead: collections.deque[concurrent.futures.Future[Numbered]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        try:
            for numbered in samples:
                ahead.append(pool.submit(check, numbered))
                if len(ahead) > 4 * count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _records(
    samples: Iterator[Numbered], plan: Plan, features: Any, on_error: OnError
) -> Iterator[Made]:
    numbers = {name: number for number, name in enumerate(plan.class_names)}
    for file, place, sample in samples:
        if sample.problem is not None:
            if on_error == "raise":
                sample.require()
            yield file, place, None, f"{sample.name}: {sample.problem}"
            continue
        if plan.captions:
            told: dict[str, Any] = {"captions": list(sample.labels)}
        else:
            labels = [numbers[name] for name in sample.labels]
            told = {"label": labels if plan.several_labels else labels[0]}
        example = {"image": io.BytesIO(sample.image or b""), **told, "file_name": sample.name}
        yield file, place, features.serialize_example(features.encode_example(example)), None


def _write_shard(path: str, made: Iterator[Made]) -> Progress | None:
    """Writes records until the shard is full; None if there is none left."""
    first = next(made, None)
    if first is None:
        return None
    shard, examples, size, temporary = Progress(), 0, 0, f"{path}.tmp"
    with _writer(temporary) as write:
        for file, place, record, problem in itertools.chain([first], made):
            shard.file, shard.sample = file, place + 1
            shard.done += 1
            if problem is not None:
                shard.damaged.append(problem)
            if record is not None:
                write(record)
                examples, size = examples + 1, size + len(record)
            if size >= SHARD_BYTES:
                break
    if not examples:
        os.remove(temporary)
        return shard
    os.replace(temporary, path)
    return dataclasses.replace(shard, examples=[examples], bytes=[size])


@contextlib.contextmanager
def _writer(path: str) -> Iterator[Callable[[bytes], None]]:
    from array_record.python.array_record_module import ArrayRecordWriter

    def said(error: Exception) -> UserError:
        return UserError(f"cannot write {path}: {short(str(error), 200)}")

    try:
        # Groups of one are read at random; encoded images cannot be compressed further.
        writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    except (RuntimeError, ValueError) as error:
        raise said(error) from error

    def write(record: bytes) -> None:
        try:
            writer.write(record)
        except (RuntimeError, ValueError) as error:
            raise said(error) from error

    try:
        yield write
    finally:
        try:
            writer.close()
        except (RuntimeError, ValueError) as error:
            raise said(error) from error


def _after(progress: Progress, shard: Progress) -> Progress:
    return Progress(
        progress.examples + shard.examples,
        progress.bytes + shard.bytes,
        shard.file,
        shard.sample,
        progress.done + shard.done,
        progress.damaged + shard.damaged,
    )


def part(folder: str, split: str, number: int) -> str:
    """The path of a whole shard until the number of all shards is known."""
    return os.path.join(folder, f"{split}-{number:05}.part")


def progress_file(split: str) -> str:
    """The name of the file that says how far a split is."""
    return f"{split}.json"

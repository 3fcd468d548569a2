"""How long it takes until the state is saved after SIGTERM: `python benchmarks/preemption.py`.

The run of the tests, in one process and in two, is told to stop while it trains, in an evaluation,
while it saves, and before a step at which an evaluation and a save are due. The clock runs from the
signal until the checkpoint has its last name, which is when it counts. Bar: 5 seconds.
"""

import argparse
import contextlib
import os
import pathlib
import re
import signal
import statistics
import sys
import tempfile
import time
from unittest import mock

TESTS = pathlib.Path(__file__).parents[1] / "tests" / "helpers"
sys.path.insert(0, str(TESTS))

BAR = 5.0
STEPS = 200  # far more than are made until several processes agree to stop
EVERY = {"checkpoint_every": 5, "eval_every": 7}
TOGETHER = {"checkpoint_every": 7, "eval_every": 7, "keep_every": 7, "log_norms_every": 7}
MOMENTS = {
    "training": EVERY,
    "evaluation": EVERY,
    "save": EVERY,
    "all together": TOGETHER,
}


def child(moment: str, sends: str, flags: list[str]) -> int:
    """A process of the run; one of them sends the signal to itself, and prints the time."""
    from vit_jax import cli, main

    with signalled(moment) if sends == "sends" else contextlib.nullcontext():
        return cli.guarded(lambda: main.run(flags))


@contextlib.contextmanager
def signalled(moment: str):
    """Sends the signal once, when the moment has come."""
    from vit_jax.input_pipeline.loader import TestDataset
    from vit_jax.train import loop
    from vit_jax.train.checkpointing import Checkpoints

    sent = []

    def send() -> None:
        if not sent:
            sent.append(True)
            print(f"sent {time.monotonic()}", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

    report, save, iterate, made = loop.Reporting.after, Checkpoints.save, TestDataset.__iter__, []

    def reporting(self, step):
        if step.number == {"training": 11, "all together": 13}.get(moment):
            send()
        report(self, step)

    def saving(self, state, *more):
        if moment == "save" and int(state.step) == 10:
            send()
        save(self, state, *more)

    def evaluating(self):
        made.append(None)
        for place, batch in enumerate(iterate(self)):
            if moment == "evaluation" and (len(made), place) == (2, 1):
                send()
            yield batch

    with (
        mock.patch.object(loop.Reporting, "after", reporting),
        mock.patch.object(Checkpoints, "save", saving),
        mock.patch.object(TestDataset, "__iter__", evaluating),
    ):
        yield


def measured(moment: str, count: int, images: pathlib.Path, workdir: pathlib.Path):
    """Seconds from the signal to the checkpoint, and to the end of all processes; the step."""
    import processes

    fields = {"dataset": images, "total_steps": STEPS, **MOMENTS[moment]}
    flags = [f"--config={TESTS}/tiny_run.py", f"--workdir={workdir}"]
    flags += [f"--config.{name}={value}" for name, value in fields.items()]
    names = ("--coordinator", "--num_processes", "--process_id")
    started = []
    for number, place in enumerate(processes.together(count)):
        joins = [f"{n}={v}" for n, v in zip(names, place, strict=True)] if count > 1 else []
        sends = "sends" if number == count - 1 else "does not"
        started.append(processes.start([__file__, "--child", moment, sends, *flags, *joins]))
    sent = None
    for line in started[-1].stdout:
        if match := re.match(r"sent (\S+)", line):
            sent = float(match[1])
            break
    assert sent is not None, started[-1].stderr.read()
    seen, when = set(steps(workdir)), sent
    while any(one.poll() is None for one in started):
        if new := set(steps(workdir)) - seen:
            seen |= new
            when = time.monotonic()
        time.sleep(0.001)
    ended = time.monotonic()
    ends = processes.finish(*started)
    saved = max(seen, default=0)
    assert all(f"after step {saved}, which is saved" in text for _, _, text in ends), ends
    return when - sent, ended - sent, saved


def steps(workdir: pathlib.Path) -> list[int]:
    found = (re.fullmatch(r"checkpoint_(\d+)", path.name) for path in workdir.glob("checkpoint_*"))
    return [int(match[1]) for match in found if match]


def main() -> None:
    import tiny_run

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        images = tiny_run.write_images(place / "images", test=40)
        for count in args.processes:
            for moment in MOMENTS:
                found = [
                    measured(moment, count, images, place / f"{count}-{moment}-{turn}")
                    for turn in range(args.rounds)
                ]
                saved, ended, at = zip(*found, strict=True)
                print(
                    f"{count} process{'es' * (count > 1)}, {moment}: saved after "
                    f"{statistics.median(saved):.2f} s (at most {max(saved):.2f}), all ended after "
                    f"{statistics.median(ended):.2f} s, steps {sorted({*at})}, load "
                    f"{os.getloadavg()[0]:.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(*sys.argv[2:4], sys.argv[4:]))
    main()

"""Where a run's numbers go: `metrics.jsonl`, one line per logged step, and TensorBoard events."""

import json
import os
import pathlib
from collections.abc import Mapping

_FILE = "metrics.jsonl"


class MetricWriter:
    """Writes scalars of one workdir.

    Lines after `first_step` are what an interrupted run wrote after its last checkpoint; they are
    cut off, so that no step stands twice.
    """

    def __init__(self, workdir: str | os.PathLike, first_step: int):
        import tensorboardX

        path = pathlib.Path(workdir) / _FILE
        _cut_back(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        # TensorBoard drops what stands after `purge_step` on its own.
        self._events = tensorboardX.SummaryWriter(
            str(workdir), purge_step=first_step + 1 if first_step else None
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """Every line of a run, in order."""
    lines = (pathlib.Path(workdir) / _FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _cut_back(path: pathlib.Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except ValueError:
            break  # the line that was being written when the run was killed
        if step <= last_step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)

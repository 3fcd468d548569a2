"""The share of a run's time that was spent on steps that count, over all its starts."""

import pytest

from vit_jax.train import goodput, stragglers
from vit_jax.train.goodput import Goodput


@pytest.fixture
def clock(monkeypatch):
    """Sets the time in seconds since 1970."""

    def at(seconds):
        monkeypatch.setattr(goodput.time, "time", lambda: seconds)
        return seconds

    return at


def test_goodput_is_carried_over_restarts_with_the_time_between_them(clock):
    first = Goodput.of([], clock(1000.0), 50.0)  # which began at 950
    lines = [{"step": 1, **first.add(25.0)}, {"step": 1, "loss_test": 1.0}]
    assert lines[0]["goodput"] == 25 / 50
    clock(1050.0)
    lines.append({"step": 2, **first.add(40.0)})
    assert lines[-1]["goodput"] == 65 / 100
    assert lines[-1]["run_hours"] == 100 / 3600

    # Killed after step 2, of which the line of step 1 is left; and started again much later.
    again = Goodput.of(lines[:2], clock(2000.0), 10.0)
    clock(2100.0)
    figures = again.add(100.0)
    assert figures["goodput"] == pytest.approx((25 + 100) / (2100 - 950))
    assert figures["run_hours"] == pytest.approx((2100 - 950) / 3600)
    assert figures["time"] == 2100.0


def test_metrics_of_an_earlier_version_begin_anew(clock):
    begun = Goodput.of([{"step": 1, "train_loss": 1.0}], clock(100.0), 20.0)
    assert begun.add(10.0)["goodput"] == 10 / 20


def test_a_run_of_one_process_has_no_slowest():
    assert stragglers.slowest(1.0) is None


def test_the_slowest_process_is_found_and_named_when_it_matters(monkeypatch):
    monkeypatch.setattr(stragglers.jax, "process_count", lambda: 4)
    waits = [0.25, 0.0, 0.5, 0.25]
    gather = lambda mine: [*waits[:3], float(mine)]  # noqa: E731
    monkeypatch.setattr(stragglers.multihost_utils, "process_allgather", gather)
    process, worst, median = stragglers.slowest(waits[3])
    assert (process, worst, median) == (2, 0.5, 0.25)
    text = stragglers.sentence("process 2 on host-c", worst, median, 1.0)
    assert text is not None
    assert text.startswith("process 2 on host-c holds up the others: it waits 0.5 s a step for")
    assert stragglers.sentence("process 2", worst, median, 5.0) is None

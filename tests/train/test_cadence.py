"""When checkpoints are due: by steps, and by the minute in agreement of all processes."""

import pytest

from vit_jax.train import cadence


def steps_of(due, last):
    return [step for step in range(1, last + 1) if due(step)]


@pytest.mark.parametrize(
    ("every", "keep_every", "expected"),
    [(4, 0, [4, 8, 10]), (0, 0, [10]), (4, 6, [4, 6, 8, 10]), ("1h", 5, [5, 10])],
)
def test_by_steps(every, keep_every, expected):
    assert steps_of(cadence.saves(every, keep_every, last=10, first_step=0), 10) == expected


class Clock:
    def __init__(self, seconds_a_step, step=0):
        self.a_step, self.step = seconds_a_step, step

    def __call__(self):
        return self.step * self.a_step


def saved_at(interval, seconds_a_step, last, first_step=0):
    """The steps at which it is due; and how often the clock was looked at."""
    clock = Clock(seconds_a_step, first_step)
    timed, looks, found = cadence.EverySeconds(interval, first_step, clock), 0, []
    for step in range(first_step + 1, last + 1):
        clock.step, before = step, timed._next
        if timed(step):
            found.append(step)
        looks += timed._next != before
    return found, looks


@pytest.mark.parametrize(("a_step", "first"), [(1.0, 0), (1.0, 37), (60.0, 0), (700.0, 0)])
def test_by_the_minute(a_step, first):
    found, _ = saved_at(600, a_step, last=first + 2000, first_step=first)
    gaps = [b - a for a, b in zip([first, *found], found, strict=False)]
    wanted = max(round(600 / a_step), 1)
    assert set(gaps) == {wanted}


def test_the_first_process_is_asked_a_few_times_only():
    _, looks = saved_at(600, 0.1, last=60_000)  # ten saves
    assert looks < 250


def test_all_processes_save_at_the_steps_of_the_first(monkeypatch):
    """Their own clocks run at other speeds."""
    answers, found = [], {}
    for process, a_step in enumerate((1.0, 3.0, 0.2)):
        said = iter(list(answers))
        monkeypatch.setattr(
            cadence,
            "_first_process",
            (lambda mine, said=said: next(said)) if process else (lambda x: answers.append(x) or x),
        )
        clock = Clock(a_step)
        timed, found[process] = cadence.EverySeconds(50, 0, clock), []
        for step in range(1, 301):
            clock.step = step
            if timed(step):
                found[process].append(step)
    assert found[0] == found[1] == found[2] == [50, 100, 150, 200, 250, 300]

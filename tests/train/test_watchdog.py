"""When a run counts as hanging, and what is said then; the whole way is in test_hangs.py."""

import os
import signal
import threading

import pytest

from vit_jax.configs import common
from vit_jax.devices import peers
from vit_jax.errors import Status
from vit_jax.train.actions import Step
from vit_jax.train.actions.watchdog import Watchdog
from vit_jax.train.clock import EVALUATING, SAVING, STEPPING, WAITING, Clock
from vit_jax.train.preemption import Preemption


class Loss:
    """A result on the devices, which is computed at some time."""

    def __init__(self):
        self.ready = False

    def is_ready(self):
        return self.ready


class Run:
    """A run whose time the test tells, and what its watchdog did."""

    def __init__(self, **settings):
        config = common.get_config().watchdog
        config.update(settings)
        self.clock, self.ended, self.sigterm = Clock(), [], False
        self.start = self.now = 1000  # whole seconds, which add up exactly
        self.watchdog = Watchdog(
            config, self.clock, self, lambda *how: self.ended.append(how), lambda: self.now
        )
        self.losses = []

    def noticed(self):
        return self.sigterm

    def does(self, doing):
        self.clock.doing = doing, self.now

    def dispatch(self, count=1):
        for _ in range(count):
            self.losses.append(Loss())
            step = Step(len(self.losses), 10**6, None, {"loss": self.losses[-1]})
            self.watchdog.after(step)

    def compute(self, count):
        for loss in [loss for loss in self.losses if not loss.ready][:count]:
            loss.ready = True

    def passes(self, seconds):
        """Time passes, in which the watchdog looks every second."""
        for _ in range(seconds):
            self.now += 1
            self.watchdog.look(self.now)

    def trains(self, steps, seconds=1):
        for _ in range(steps):
            self.dispatch()
            self.passes(seconds - 1)
            self.compute(1)
            self.passes(1)


def run_of(steps=20, seconds=1, **settings):
    run = Run(**settings)
    run.trains(steps, seconds)
    return run


@pytest.mark.parametrize(
    ("doing", "seconds", "settings", "limit"),
    [
        (WAITING, 1, {}, 300),
        (STEPPING, 1, {}, 300),
        (STEPPING, 30, {}, 600),  # 20 times the median
        (WAITING, 30, {"factor": 100}, 3000),
        (EVALUATING, 1, {}, 10800),
        (SAVING, 1, {"saving": 50}, 50),
    ],
)
def test_a_run_hangs_after_its_limit_and_not_before(doing, seconds, settings, limit, capfd):
    run = run_of(20, seconds, **settings)
    run.does(doing)
    run.dispatch(3)
    run.passes(limit)
    assert run.ended == []
    run.passes(2)
    ((status, line),) = run.ended
    assert status == Status.HUNG == 142
    assert "process 0 on " in line
    assert f"hangs after step 20: {doing} for {limit + 1} s" in line
    assert "test_a_run_hangs_after_its_limit_and_not_before" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("doing", "settings"),
    [
        (WAITING, {"factor": 0}),
        (STEPPING, {"factor": 0}),
        (EVALUATING, {"evaluating": 0}),
        (SAVING, {"saving": 0}),
    ],
)
def test_each_limit_can_be_turned_off(doing, settings):
    run = run_of(**settings)
    run.does(doing)
    run.passes(20_000)
    assert run.ended == []


def test_before_the_first_step_the_limit_is_that_of_compiling():
    run = Run(compiling=500)
    run.does(WAITING)
    run.passes(500)
    assert run.ended == []
    run.passes(1)
    assert "hangs before the end of a step: waiting for data for 501 s" in run.ended[0][1]


def test_the_compiled_step_is_no_measure_of_a_step():
    run = Run()
    run.dispatch()
    run.passes(400)
    run.compute(1)
    run.trains(10)
    run.passes(301)
    assert run.ended[0][0] == Status.HUNG


def test_steps_that_are_dispatched_ahead_count_when_they_are_computed():
    """A hundred steps of ten seconds are dispatched at once; the run then waits for the last."""
    run = run_of(3, 10)
    run.dispatch(100)
    for _ in range(100):
        run.passes(10)
        run.compute(1)
    assert run.ended == []
    run.passes(302)
    assert "hangs after step 103" in run.ended[0][1]


def test_an_evaluation_is_not_waiting_for_a_step():
    run = run_of()
    for doing in (EVALUATING, SAVING):
        run.does(doing)
        run.passes(1000)
    run.does(STEPPING)
    run.passes(299)
    assert run.ended == []


@pytest.mark.parametrize(
    ("doing", "seconds", "limit"),
    [
        (WAITING, 1, 75),  # what the others have patience for
        (WAITING, 30, 600),  # but 20 times the median, which is more
        (STEPPING, 1, 300),  # then this process is not what they wait for
        (EVALUATING, 1, 10800),
    ],
)
def test_a_process_that_others_wait_for_has_less_time_for_its_data(
    monkeypatch, doing, seconds, limit
):
    run = run_of(20, seconds)
    run.does(doing)
    run.dispatch()
    waited = peers.Waited(run.now - 1000, 75.0)  # which counts from the end of the last step
    monkeypatch.setattr(peers, "waited_for", lambda: waited)
    run.compute(1)
    run.passes(limit)
    assert run.ended == []
    run.passes(2)
    ((status, line),) = run.ended
    assert status == Status.HUNG
    assert line.count("and the others wait for it") == (limit == 75)


def test_the_others_wait_from_when_they_came_to_the_step(monkeypatch):
    run = run_of()
    run.does(WAITING)
    run.passes(200)
    waited = peers.Waited(run.now, 75.0)
    monkeypatch.setattr(peers, "waited_for", lambda: waited)
    run.passes(75)
    assert run.ended == []
    run.passes(2)
    assert "waiting for data for 276 s, and the others wait for it" in run.ended[0][1]


@pytest.mark.parametrize(("doing", "ends"), [(WAITING, True), (EVALUATING, True), (SAVING, False)])
def test_sigterm_ends_a_run_that_hangs(doing, ends):
    run = run_of()
    run.does(doing)
    run.sigterm = True
    run.passes(61)
    assert run.ended == []
    run.passes(2)
    assert [status for status, _ in run.ended] == [Status.PREEMPTED] * ends
    if ends:
        assert f"{doing}, 60 s after SIGTERM; nothing is saved" in run.ended[0][1]


def test_sigterm_lets_a_run_that_goes_on_end_by_itself():
    run = run_of()
    run.sigterm = True
    run.trains(100, 10)
    assert run.ended == []


def test_sigterm_is_noticed_by_any_thread_and_by_the_run():
    with Preemption() as preemption:
        assert not preemption.noticed()
        found = []
        # The number of the signal comes through even if its handler does not get to run.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        os.kill(os.getpid(), signal.SIGTERM)
        thread = threading.Thread(target=lambda: found.append(preemption.noticed()))
        thread.start()
        thread.join()
        assert found == [True]
        assert preemption.asked()
    assert signal.set_wakeup_fd(-1) == -1

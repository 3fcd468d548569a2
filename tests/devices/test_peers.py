"""What ends a process when another one of the run is gone."""

import ctypes
import os
import select
import signal
import socket
import struct

import processes
import pytest

from vit_jax.devices import distributed, peers
from vit_jax.devices.relay import relay
from vit_jax.errors import Status, UserError

TIMEOUT = 3


class Store:
    """The store of `jax.distributed`, which the test fills for the other processes."""

    def __init__(self):
        self.values, self.reachable = {}, True

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get(self, folder):
        if not self.reachable:
            raise RuntimeError("UNAVAILABLE")
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]


class Others:
    """A process 1 of three, whose time the test tells, and the counters of the other two."""

    def __init__(self, monkeypatch):
        self.store, self.ended, self.now = Store(), [], 0.0
        monkeypatch.setattr(peers.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(peers.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(peers.os, "_exit", lambda status: None)
        self.peers = peers.Peers(self.store, 1, 3, 10.0, lambda *how: self.ended.append(how))

    def passes(self, seconds, counting=(0, 2), begun=(0, 0, 0)):
        for _ in range(seconds):
            self.now += 1
            for number in counting:
                value = f"{self.now} {begun[number]} host{number}"
                self.store.values[f"vit_jax/alive/{number}"] = value
            self.peers.exchange()
            self.peers.look()


@pytest.fixture
def others(monkeypatch):
    return Others(monkeypatch)


def test_processes_that_count_are_left_alone(others):
    others.passes(100)
    assert others.ended == []
    assert others.store.values["vit_jax/alive/1"].startswith("100 ")


def test_a_process_that_was_never_seen_is_not_named_when_process_0_is_gone(others):
    others.passes(1, [0])
    others.store.reachable = False
    others.passes(11, [])
    assert [line.split(" on ")[0] for _, line in others.ended] == ["process 0"]


@pytest.mark.parametrize(("lost", "counting"), [(2, [0]), (0, [2])])
def test_a_process_that_stops_counting_is_lost(others, lost, counting):
    others.passes(5)
    others.store.reachable = lost != 0
    others.passes(10, counting)
    assert others.ended == []
    others.passes(1, counting)
    ((status, line),) = others.ended
    assert status == Status.LOST_PEER == 134
    assert line.startswith(f"process {lost} on host{lost} gave no sign of life for 10 s")


def test_a_process_that_was_stopped_itself_does_not_take_the_others_for_lost(others):
    others.passes(5)
    others.now += 1000
    others.peers.look()
    others.passes(5)
    assert others.ended == []


def test_a_process_knows_since_when_the_others_wait_for_it(others):
    others.peers.begin()
    others.passes(5, begun=(1, 0, 0))
    assert others.peers.waited_for() is None
    assert others.store.values["vit_jax/alive/1"].startswith("5 1 ")
    others.passes(5, begun=(1, 0, 2))
    # Two of eight beats are left for this process to see it, and two for the others to be told.
    assert others.peers.waited_for() == (6.0, 7.5)
    others.peers.begin()
    assert others.peers.waited_for() is None
    others.passes(5, begun=(2, 0, 2))
    assert others.peers.waited_for() is None
    others.passes(5, begun=(3, 0, 3))
    assert others.peers.waited_for() == (16.0, 7.5)
    assert others.ended == []


def test_a_process_that_hangs_tells_the_others_but_not_of_sigterm(others, monkeypatch):
    ended = []
    monkeypatch.setattr(peers, "_peers", others.peers)
    monkeypatch.setattr(peers, "end_now", lambda *how: ended.append(how))
    peers.end_all(Status.PREEMPTED, "nothing is saved")
    assert "vit_jax/ended/1" not in others.store.values
    peers.end_all(Status.HUNG, "it hangs")
    assert others.store.values["vit_jax/ended/1"] == "it hangs"
    assert ended == [(Status.PREEMPTED, "nothing is saved"), (Status.HUNG, "it hangs")]


def test_a_process_that_ends_tells_the_others_why(others):
    others.passes(5)
    others.store.values["vit_jax/ended/2"] = "the disk is full"
    others.passes(1)
    assert others.ended[0] == (Status.LOST_PEER, "process 2 on host2 has ended: the disk is full")


def test_a_process_that_ends_tells_and_minds_nobody_any_more(others):
    others.peers.leave("the disk is full", Status.BAD_INPUT)
    assert others.store.values["vit_jax/ended/1"] == "the disk is full"
    others.store.values["vit_jax/ended/2"] = "the disk is full"
    others.passes(100, [])
    assert others.ended == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_the_timeout_has_a_range(timeout):
    with pytest.raises(UserError, match="--heartbeat_timeout"):
        distributed.initialize(heartbeat_timeout=timeout)


def run(*more: str) -> list:
    """Three processes that add up; all have done some sums."""
    words = [processes.TESTS / "peer_worker.py"]
    started = [processes.start([*words, *own, TIMEOUT, *more]) for own in processes.together(3)]
    for process in started:
        for line in process.stdout:
            if line == "ready\n":
                break
    return started


@pytest.mark.parametrize(("victim", "sent"), [(0, signal.SIGKILL), (2, signal.SIGSTOP)])
def test_a_lost_process_is_one_line_on_every_other(victim, sent):
    started = run()
    lost = started.pop(victim)
    try:
        os.kill(lost.pid, sent)
        for status, _, errors in processes.finish(*started, limit=60):
            assert status == Status.LOST_PEER
            assert errors.startswith(f"vit-jax: error: process {victim} on ")
            assert "gave no sign of life for 3 s" in errors
            assert errors.count("\n") == 1
    finally:
        os.killpg(lost.pid, signal.SIGKILL)
        lost.communicate()


def test_a_process_that_fails_is_named_on_every_other():
    started = run("fail")
    ended = processes.finish(*started, limit=60)
    for number, (status, _, errors) in enumerate(ended):
        if number == 1:
            assert (status, errors) == (2, "vit-jax: error: image.png is damaged\n")
        else:
            assert status == Status.LOST_PEER
            assert errors.startswith("vit-jax: error: process 1 on ")
            assert errors.endswith(" has ended: image.png is damaged\n")
            assert errors.count("\n") == 1


def test_a_relay_passes_on_both_ways_and_outlives_its_target():
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, _, port = relay(f"127.0.0.1:{server.getsockname()[1]}").partition(":")
        near = socket.create_connection((host, int(port)))
        far, _ = server.accept()
    # It works while this process holds Python's lock, as JAX does when processes agree to stop.
    locked, reads = ctypes.PyDLL(None), struct.pack("ihh", far.fileno(), select.POLLIN, 0)
    assert locked.send(near.fileno(), b"question", 8, 0) == 8
    assert locked.poll(reads, 1, 30_000) == 1
    assert far.recv(100) == b"question"
    far.sendall(b"answer")
    assert near.recv(100) == b"answer"
    far.close()
    near.settimeout(0.2)
    with pytest.raises(TimeoutError):  # not b"", which is how a closed connection reads
        near.recv(100)
    near.close()

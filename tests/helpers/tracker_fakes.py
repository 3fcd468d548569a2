"""Trackers that keep what they are given, fail or hang, under the names of packages."""

import threading

import pytest

from vit_jax.train import trackers


class Healthy:
    """Keeps what it is given."""

    def __init__(self):
        self.calls = []

    def start(self, run, key):
        self.calls.append(("start", run.name, run.config["optim"], key))
        return key or "the key"

    def write(self, step, scalars):
        self.calls.append((step, scalars))

    def close(self, ending):
        self.calls.append(("close", ending))


class FailsToStart(Healthy):
    def start(self, run, key):
        raise ConnectionError("no server\nand more lines")


class FailsOnce(Healthy):
    def write(self, step, scalars):
        if step == 2:
            raise ValueError("one report")
        super().write(step, scalars)


class Exits(Healthy):
    def write(self, step, scalars):
        raise SystemExit(1)


class Hangs(Healthy):
    def write(self, step, scalars):
        threading.Event().wait()


class HangsAtTheEnd(Healthy):
    def close(self, ending):
        threading.Event().wait()


def install(patch: pytest.MonkeyPatch, **made) -> None:
    """Makes trackers known under the names of packages that are there, or are not."""
    patch.setattr(trackers, "CLOSING", 0.5)
    patch.setattr(trackers, "STOPPING", 0.5)
    packages = {name: (lambda one=one: one, "pip install it") for name, one in made.items()}
    patch.setattr(trackers, "KNOWN", packages)

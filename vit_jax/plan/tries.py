"""Compiles a config with other settings, and says what came of it."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.devices.sharding import check_batch
from vit_jax.errors import UserError
from vit_jax.overrides import changed
from vit_jax.plan import compiling, space, topology
from vit_jax.plan.report import Plan
from vit_jax.plan.space import Settings

# Called with a text and whether its line ends with it.
Say = Callable[[str, bool], None]


@dataclasses.dataclass(frozen=True)
class Try:
    """One compilation.

    Attributes:
      over: Bytes that a device lacks; at least so many where the compiler gave up early.
      plan: None where the compiler refused.
    """

    topology: str
    settings: Settings
    over: float
    plan: Plan | None

    @property
    def fits(self) -> bool:
        return self.plan is not None and bool(self.plan.fits)

    def to_dict(self) -> dict[str, Any]:
        known = self.plan and {"memory": self.plan.memory.total, "seconds": self.plan.seconds}
        return {
            "topology": self.topology,
            "settings": self.settings,
            "fits": self.fits,
            "over": max(self.over, 0.0),
            **(known or {}),
        }


class Undivided(UserError):
    """The devices do not divide a batch."""


class Compiler:
    """Compiles settings at one place after the other, none of them twice there."""

    def __init__(self, config: Any, num_classes: int, say: Say):
        self._config, self._num_classes, self.say = config, num_classes, say
        self.remat = space.remat(config)
        self.tries: list[Try] = []

    def move(self, name: str | None) -> None:
        """To another place, which determines the space.

        Raises:
          Undivided: where its devices do not divide the batch.
        """
        self._name, self._place = name, name or "this machine"
        self._devices = topology.devices(name)
        self._known: dict[tuple[Any, ...], Try] = {}
        mesh = space.mesh(self._config, self._devices)
        try:
            check_batch("batch", self._config.batch, mesh)
            check_batch("batch_eval", self._config.batch_eval, mesh)
        except UserError as problem:
            raise Undivided(str(problem)) from problem
        self.parts = space.parts(self._config, self._devices)
        self._sizes = space.fsdp_sizes(self._config, self._devices, self._num_classes)

    def compile(self, settings: Settings, parts: Sequence[int]) -> Try:
        """With the first division, from that of the settings on, that makes it fit.

        Args:
          parts: Values of accum_steps that are tried, each with each size of the fsdp axis.

        Returns:
          Where none fits, the try that comes closest.
        """
        divisions = list(itertools.product(parts, self._sizes))
        first = divisions.index((settings["accum_steps"], settings["mesh.fsdp"]))
        tries = []
        for accum_steps, size in divisions[first:]:
            division = {"accum_steps": accum_steps, "mesh.fsdp": size}
            tries.append(self._tried({**settings, **division}))
            if tries[-1].fits:
                return tries[-1]
        return min(tries, key=lambda tried: tried.over)

    def _tried(self, settings: Settings) -> Try:
        key = tuple(settings.values())
        if key not in self._known:
            words = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in settings.items())
            self.say(f"{self._place}, {words}: ", False)
            try:
                tried = self._compiled(settings)
            except BaseException:  # End the line of progress before the traceback.
                self.say("", True)
                raise
            self._known[key] = tried
            self.tries.append(tried)
            self.say(_outcome(tried), True)
        return self._known[key]

    def _compiled(self, settings: Settings) -> Try:
        config = changed(self._config, settings)
        try:
            step = compiling.lower(config, self._devices, self._num_classes)
            plan = compiling.compile_step(step, config, self._name)
        except compiling.DoesNotFit as error:
            return Try(self._place, settings, error.needed - error.available, None)
        return Try(self._place, settings, plan.memory.total - (plan.limit or 0), plan)


def _outcome(tried: Try) -> str:
    if tried.plan is None:
        return f"at least {tried.over / 1e9:.2f} GB too much"
    if not tried.fits:
        return f"{tried.over / 1e9:.2f} GB too much"
    seconds = tried.plan.seconds
    time = f", at least {1e3 * max(seconds.values()):.1f} ms a step" if seconds else ""
    return f"fits, {tried.plan.memory.total / 1e9:.2f} GB{time}"

"""Reports the progress of training."""

from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from vit_jax.devices import peers
from vit_jax.train import stragglers
from vit_jax.train.actions import Action, Step
from vit_jax.train.actions.health import Health
from vit_jax.train.clock import Clock
from vit_jax.train.log import RunLog


class Reporting(Action):
    """Says when the first step is done, and reports loss and pace every `progress_every` steps.

    Args:
      config: The config of the run.
      log: Where it is reported.
      clock: The clock of the run.
      health: What judges the steps before they are reported.
      rate: The learning rate as a function of the update's number, counted from 0.
      devices: The number of devices that train.
    """

    def __init__(
        self,
        config: ConfigDict,
        log: RunLog,
        clock: Clock,
        health: Health,
        rate: Callable[[int], jax.Array],
        devices: int,
    ):
        self._config = config
        self._log, self._clock, self._health = log, clock, health
        self._rate, self._devices = rate, devices
        self._compiled = False

    def before(self, number: int) -> None:
        if not self._compiled:
            self._log.say("compiling the first step …")

    def after(self, step: Step) -> None:
        due = step.due(self._config.progress_every)
        if not self._compiled:
            self._compiled = True
            jax.block_until_ready(step.scalars)
            self._log.first_step(step.number, self._clock.seconds)
            if not due:
                # The first pace that is reported has no compilation.
                self._clock.restart(step.number)
        blocks = self._config.log_norms_every
        if due or (blocks and step.due(blocks)):
            self._health.examine(step)
            scalars = {name: float(x) for name, x in jax.device_get(dict(step.scalars)).items()}
            if due:
                self._train(step.number, {k: v for k, v in scalars.items() if "/" not in k})
            if blocks and step.due(blocks):
                self._log.norms(step.number, {k: v for k, v in scalars.items() if "/" in k})

    def _train(self, number: int, scalars: dict[str, float]) -> None:
        pace, history = self._clock.pace(number), self._health.history
        counts: dict[str, float] = {}
        if found := stragglers.slowest(pace.data_wait_seconds):
            process, worst, median = found
            counts |= {"data_wait_max_seconds": worst, "data_wait_process": process}
            if text := stragglers.sentence(peers.name(process), worst, median, pace.step_seconds):
                self._log.say(text)
        if self._config.on_nonfinite == "skip":
            counts["skipped_updates"] = history.skipped
        if self._config.on_nonfinite == "rollback" or self._config.spike.factor:
            counts["rollbacks"] = len(history.rollbacks)
        figures = {name: x for name, x in scalars.items() if name not in ("loss", "finite")}
        self._log.train(
            number,
            loss=scalars["loss"],
            lr=float(self._rate(number - 1)),
            speed=self._config.batch / pace.step_seconds,
            devices=self._devices,
            more={
                **figures,
                "step_seconds": pace.step_seconds,
                "data_wait_seconds": pace.data_wait_seconds,
                "images_seen": number * self._config.batch,
                **counts,
            },
            trained_seconds=pace.steps * pace.step_seconds,
        )

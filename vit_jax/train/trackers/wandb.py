"""Weights & Biases, https://docs.wandb.ai.

`WANDB_API_KEY` or its own login, `WANDB_MODE=offline`, `WANDB_PROJECT`, `WANDB_ENTITY` and
`WANDB_BASE_URL` are read by the library.
"""

import os
import uuid
from collections.abc import Mapping

from vit_jax.train.trackers import CLOSING, PROJECT, Description, Ending

_STATUS = {"finished": 0, "stopped": 143, "failed": 1}


class Wandb:
    """A run there, with the same id after a restart.

    Figures are drawn over a field `step` of their own. The library's own step only ever grows, and
    what a restarted run repeats would be dropped; so it is drawn again, on the same places.
    """

    def start(self, run: Description, key: str | None) -> str:
        import wandb

        if os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not wandb.login(
            prompt=False
        ):
            raise RuntimeError("no API key; set WANDB_API_KEY, or WANDB_MODE=offline")
        key = key or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=key,
            name=run.name,
            resume="allow",
            dir=str(run.folder),
            config={**run.config, "start": dict(run.start)},
            allow_val_change=True,
            reinit="create_new",
            settings=wandb.Settings(
                # Nothing is printed or sent but what is written here. The library by itself would
                # send the command with its secrets, and write into the progress bar.
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_save_requirements=False,
                # Without a limit the end of the process would wait for a server that is away.
                finish_timeout=CLOSING,
            ),
        )
        self._run.define_metric("*", step_metric="step")
        return key

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({**scalars, "step": step})

    def close(self, ending: Ending) -> None:
        self._run.finish(exit_code=_STATUS[ending])

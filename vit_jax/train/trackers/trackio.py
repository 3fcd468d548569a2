"""trackio, https://huggingface.co/docs/trackio: local files, or a Space.

`TRACKIO_DIR`, `TRACKIO_SPACE_ID`, `TRACKIO_SERVER_URL`, `TRACKIO_WRITE_TOKEN` and `HF_TOKEN` are
read by the library; `TRACKIO_PROJECT` names the project.
"""

import os
import uuid
from collections.abc import Mapping

from vit_jax.train.trackers import PROJECT, Description, Ending


class Trackio:
    """A run there, with the same name after a restart; what a restarted run repeats is added."""

    def start(self, run: Description, key: str | None) -> str:
        import trackio

        key = key or f"{run.name}-{uuid.uuid4().hex[:8]}"
        self._run = trackio.init(  # pyright: ignore (it need not be installed)
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=key,
            resume="allow",
            config={**run.config, "start": dict(run.start)},
            embed=False,
        )
        return key

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self, ending: Ending) -> None:
        del ending  # It knows one way to end.
        self._run.finish()

"""MLflow, https://mlflow.org/docs/latest/tracking.html.

`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` and the keys of a server are read by the library.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.train.trackers import PROJECT, Description, Ending

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_PARAMETERS = 100  # in one call
_LENGTH = 5_000  # of a value; a server takes 6,000 characters of parameters, and 8,000 of tags


class MLflow:
    """A run there, with the same id after a restart.

    Parameters are the config of the first start, because MLflow does not change them. A tag holds
    the facts of the newest start. What a restarted run repeats is added to a figure's history.
    """

    def start(self, run: Description, key: str | None) -> str:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if key is None:
            experiment = _experiment(self._client)
            key = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
            for parameters in _parts(list(run.config.items()), _PARAMETERS):
                self._client.log_batch(key, params=[_parameter(*pair) for pair in parameters])
        else:
            self._client.update_run(key, status="RUNNING")
        self._client.set_tag(key, "vit_jax.start", json.dumps(run.start)[:_LENGTH])
        self._key = key
        return key

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(
            self._key,
            metrics=[Metric(_name(k), value, now, step) for k, value in scalars.items()],
        )

    def close(self, ending: Ending) -> None:
        self._client.set_terminated(self._key, status=_STATUS[ending])


def _experiment(client: Any) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = client.get_experiment_by_name(name)
    return client.create_experiment(name) if found is None else found.experiment_id


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _parameter(name: str, value: Any) -> Any:
    from mlflow.entities import Param

    return Param(_name(name), str(value)[:_LENGTH])


def _name(name: str) -> str:
    """The name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)

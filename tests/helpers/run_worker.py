"""One process of a run, for tests: does the jobs that it is told, one after the other.

python run_worker.py JOBS.json [COORDINATOR NUM_PROCESSES PROCESS_ID]
"""

import contextlib
import json
import pathlib
import sys
from unittest import mock

import contrast
import jax
import poison
import tiny_run

from vit_jax import input_pipeline, train
from vit_jax.configs import common
from vit_jax.devices import distributed, sharding
from vit_jax.devices.sharding import make_mesh
from vit_jax.evaluate.kinds import Setting
from vit_jax.train import engine, evaluations
from vit_jax.train.checkpointing import Checkpoints


def do(job: dict) -> None:
    if job["do"] == "contrast":
        found = [x.tolist() for x in contrast.over_all_devices(*job["how"])]
        if jax.process_index() == 0:
            tiny_run.write_json(pathlib.Path(job["out"]), found)
        return
    config = common.with_defaults(tiny_run.config(**job["config"]))
    if job["do"] == "train":
        with contextlib.ExitStack() as stack:
            if job.get("slices"):
                stack.enter_context(mock.patch.object(sharding, "slices", _processes))
                rows = make_mesh(config.mesh).devices.reshape(jax.process_count(), -1)
                assert [{d.process_index for d in row} for row in rows] == [{0}, {1}]
            bad = {int(number): factor for number, factor in job.get("poison", {}).items()}
            if bad:
                stack.enter_context(poison.labels(bad))
            process, which = job.get("signal_in_evaluation", (None, 0))
            if process == jax.process_index():
                stack.enter_context(poison.signal_in_evaluation(which, pause=0.3))
            train.train_and_evaluate(config, job["workdir"])
        return
    built = engine.build(config, make_mesh(config.mesh), num_classes=2)
    state = built.init(jax.random.key(config.seed))
    if job["do"] == "restore":
        with Checkpoints(job["workdir"]) as checkpoints:
            state = checkpoints.restore(like=state)
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        found = {jax.tree_util.keystr(name): tiny_run.describe(value) for name, value in leaves}
        found["devices"] = jax.device_count()
    else:
        hosts = jax.process_index(), jax.process_count()
        images, test = input_pipeline.get_datasets(
            config, **dict(zip(("process_index", "process_count"), hosts, strict=True))
        )
        setting = Setting(config, built, images.class_names, *hosts)
        found = {}
        for one in evaluations.of_run(setting, test):
            found |= one.figures(state)
    if jax.process_index() == 0:
        tiny_run.write_json(pathlib.Path(job["out"]), found)


def _processes(devices: list) -> list[list]:
    """The devices of each process, as `slices` gives those of each GPU node."""
    own = [[d for d in devices if d.process_index == i] for i in range(jax.process_count())]
    return [part for part in own if part]


if __name__ == "__main__":
    if len(sys.argv) > 2:
        distributed.initialize(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), timeout=120)
    for job in json.loads(pathlib.Path(sys.argv[1]).read_text()):
        do(job)

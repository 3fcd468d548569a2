"""One process of a run, for tests: does the jobs that it is told, one after the other.

python run_worker.py JOBS.json [COORDINATOR NUM_PROCESSES PROCESS_ID]
"""

import json
import pathlib
import sys

import jax
import tiny_run

from vit_jax import input_pipeline, train
from vit_jax.configs import common
from vit_jax.devices import distributed
from vit_jax.devices.sharding import make_mesh
from vit_jax.evaluate.evaluation import evaluate
from vit_jax.train import engine
from vit_jax.train.checkpointing import Checkpoints


def do(job: dict) -> None:
    config = common.with_defaults(tiny_run.config(**job["config"]))
    if job["do"] == "train":
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
        _, test = input_pipeline.get_datasets(
            config, process_index=jax.process_index(), process_count=jax.process_count()
        )
        found = evaluate(built, state.best_variables, test, config.prefetch).figures
    if jax.process_index() == 0:
        tiny_run.write_json(pathlib.Path(job["out"]), found)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        distributed.initialize(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), timeout=120)
    for job in json.loads(pathlib.Path(sys.argv[1]).read_text()):
        do(job)

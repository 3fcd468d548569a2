"""Several processes make the same run as one; and when there are several at all."""

import itertools
import json
import pathlib
import shutil
import threading

import contrast
import jax
import numpy as np
import processes
import pytest
import tiny_run

from vit_jax import train
from vit_jax.devices import distributed
from vit_jax.devices.sharding import AXES, AxisType
from vit_jax.errors import UserError
from vit_jax.train import loop
from vit_jax.train.contrastive import LOSSES

STEPS = 4
# Dropout off: what it draws is the same, but one wrong rounding makes Adam's first steps jump.
RUN = {
    "dropout": False,
    "total_steps": STEPS,
    "warmup_steps": 0,
    "checkpoint_every": 2,
    "eval_every": 2,
    "keep_checkpoints": 0,
    "optim_dtype": "float32",
}
FSDP = {"mesh__data": 1, "mesh__fsdp": -1}
# Mixed meshes: test_sharding.py.
RUNS = {
    # Each process is a slice: 'data' goes over both, and 'fsdp' stays inside.
    "sgd, slices": {"optim": "sgd", "mesh__data": 2, "mesh__fsdp": 2},
    "adamw, fsdp": {"optim": "adamw", **FSDP},
    "adafactor, data": {"optim": "adafactor"},
    "lamb, fsdp": {"optim": "lamb", **FSDP},
    # By the clock of the first process, and at the multiples that are kept.
    "lion, data": {"optim": "lion", "base_lr": 1e-3, "checkpoint_every": "1h", "keep_every": 2},
    # Every image is compared with the texts of all processes.
    "pairs, data": {"pairs": True, "optim": "sgd", "contrastive__rows": 3},
}
RESUMED = ("sgd, slices", "adamw, fsdp")
# These divide a gradient by its own size: where the true gradient is zero, as for the biases of
# keys, the update is rounding noise at full size, and so is its part of the norm.
NOISY_NORMS = ("adafactor", "lion")
TESTS_PER_CLASS = 11
# Batch, and images at once on a device; neither batch divides the 22 examples, nor 4 the shares.
EVALUATIONS = ((12, 16), (24, 16), (12, 4), (24, 4))
PAIRED = "paired"
PAIRED_EVALS = {"found": {"kind": "retrieval"}, "named": {"kind": "zeroshot", "prompts": "short"}}
# Rows of scores at a time, and pairs; and how far rounding may take sums in another order.
CONTRAST = (4, 32)
CONTRAST_BOUNDS = {"float32": 1e-6, "float64": 1e-12}
EVALS = {
    "val": {"split": "train"},
    "3shot": {"kind": "fewshot", "shots": 3},
    "knn": {"kind": "knn", "k": 3},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    return tiny_run.write_images(folder, test=TESTS_PER_CLASS, captions=True)


def work(jobs: list[dict], folder: pathlib.Path, count: int, devices: int) -> None:
    """Does the jobs in `count` processes of `devices` devices each."""
    path = folder / "jobs.json"
    tiny_run.write_json(path, jobs)
    worker = processes.TESTS / "run_worker.py"
    processes.succeed(
        *(processes.start([worker, path, *own], devices) for own in processes.together(count))
    )


def evaluations(images, folder: pathlib.Path) -> list[dict]:
    return [
        {
            "do": "evaluate",
            "out": str(folder / f"evaluation_{batch}_{rows}.json"),
            "config": {
                "images": str(images),
                "batch": 12,
                "batch_eval": batch,
                "batch_eval_device": rows,
                "evals": EVALS if rows == 16 else {},
            },
        }
        for batch, rows in EVALUATIONS
    ] + [
        {
            "do": "evaluate",
            "out": str(folder / f"evaluation_{batch}_{PAIRED}.json"),
            "config": {
                "images": str(images),
                "pairs": True,
                "batch": 12,
                "batch_eval": batch,
                "batch_eval_device": 4,
                "evals": PAIRED_EVALS,
            },
        }
        for batch in (12, 24)
    ]


@pytest.fixture(scope="module")
def two(images, tmp_path_factory) -> pathlib.Path:
    """Every run and evaluation in two processes of two devices."""
    folder = tmp_path_factory.mktemp("two")
    runs = [
        {
            "do": "train",
            "workdir": str(folder / name),
            "slices": "slices" in name,
            "config": RUN | changes | {"images": str(images)},
        }
        for name, changes in RUNS.items()
    ]
    losses = [
        {"do": "contrast", "how": [*how, *CONTRAST], "out": str(folder / f"{'_'.join(how)}.json")}
        for how in itertools.product(LOSSES, CONTRAST_BOUNDS)
    ]
    work(runs + losses + evaluations(images, folder), folder, count=2, devices=2)
    return folder


@pytest.fixture(scope="module")
def one(images, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("one")
    work(evaluations(images, folder), folder, count=1, devices=2)
    return folder


@pytest.fixture(scope="module")
def three(images, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("three")
    work(evaluations(images, folder), folder, count=3, devices=1)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_one_process_and_one_device_train_alike(
    images, two, tmp_path, monkeypatch, name
):
    config = tiny_run.config(images, **RUN | RUNS[name])
    runs = [two / name]
    if name in RESUMED:  # the others on four devices: test_sharding.py
        train.train_and_evaluate(config, tmp_path / "four")
        runs.append(tmp_path / "four")
    config.mesh = {"data": 1, "fsdp": 1, "model": 1}
    one = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    monkeypatch.setattr(loop, "make_mesh", lambda sizes: one)
    train.train_and_evaluate(config, tmp_path / "one")

    expected = tiny_run.lines(tmp_path / "one")
    assert len(expected) == STEPS + 2
    for workdir in runs:
        # One line each: only the first process writes.
        assert [line.keys() for line in tiny_run.lines(workdir)] == [e.keys() for e in expected]
        for line, want in zip(tiny_run.lines(workdir), expected, strict=True):
            if config.optim in NOISY_NORMS and "update_norm" in want:
                line["update_norm"] = want["update_norm"]
            assert line == pytest.approx(want, rel=1e-5)
        assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
        assert {path.name for path in workdir.glob("checkpoint_*")} == {
            "checkpoint_2",
            "checkpoint_4",
        }


@pytest.mark.parametrize("name", RESUMED)
def test_one_process_goes_on_from_a_checkpoint_of_two(images, two, tmp_path, name):
    workdir = tmp_path / "run"
    shutil.copytree(two / name, workdir)
    shutil.rmtree(workdir / f"checkpoint_{STEPS}")
    train.train_and_evaluate(tiny_run.config(images, **RUN | RUNS[name]), workdir)
    np.testing.assert_allclose(tiny_run.losses(workdir), tiny_run.losses(two / name), rtol=1e-5)
    assert sorted(tiny_run.stored(workdir)) == [2, STEPS]


@pytest.mark.parametrize("rows", [16, 4, PAIRED])
def test_any_number_of_processes_finds_the_same_figures(one, two, three, rows):
    """To the last bit, in batches of any size; and every example once."""
    first, *others = (
        json.loads((folder / f"evaluation_{batch}_{rows}.json").read_text())
        for folder in (one, two, three)
        for batch in (12, 24)
    )
    assert len(others) == 5
    assert first["examples_test"] == 2 * TESTS_PER_CLASS
    assert 0 < first["loss_test"] < (8 if rows == PAIRED else 2)
    if rows == PAIRED:
        assert first["found/text_to_image@10"] > first["found/text_to_image@1"]
        assert first["named/accuracy"] > 0
    if rows == 16:
        assert {name.partition("/")[0] for name in first if "/" in name} == set(EVALS)
        assert first["3shot/l2"] > 0
    assert all(other == first for other in others)


# --- whether there are several -------------------------------------------------------------------


@pytest.fixture
def joined(monkeypatch):
    """Sets the environment, and returns what `jax.distributed.initialize` is then called with."""
    calls, watched = [], []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: calls.append(kwargs))
    monkeypatch.setattr(distributed.peers, "watch", watched.append)
    monkeypatch.setattr(distributed, "_has_tpu", lambda: False)

    def join(env: dict[str, str] | None = None, *args, **kwargs):
        calls.clear()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            distributed.initialize(*args, **kwargs)
        for call in calls:
            call.pop("initialization_timeout")
            # JAX's own watch, which ends a process with a stack, comes after ours.
            assert call.pop("heartbeat_timeout_seconds") > 2 * watched[-1]
            assert call.pop("shutdown_timeout_seconds") >= watched[-1]
        return calls[0] if calls else None

    return join


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    "env",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell in an allocation of two
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"},  # a batch script, not srun
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # any pod
    ],
    ids=str,
)
def test_one_process_waits_for_nobody(joined, env):
    assert joined(env) is None


@pytest.mark.parametrize(
    "env",
    [
        SLURM,
        OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:1"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
    ],
    ids=str,
)
def test_a_cluster_is_left_to_jax(joined, env):
    assert joined(env) == {}


def test_flags_are_taken_as_they_are(joined):
    expected = {"coordinator_address": "h:1", "num_processes": 2, "process_id": 1}
    given = joined(SLURM, "h:1", 2, 1)
    assert given == expected | {"cluster_detection_method": "deactivate"}
    assert joined(KUBERNETES, num_processes=1) is None
    assert joined(SLURM, "h:1") == {"coordinator_address": "h:1"}


def test_open_mpi_5_numbers_its_processes_and_needs_a_coordinator(joined):
    given = joined(OPEN_MPI, "h:1")
    assert (given["num_processes"], given["process_id"]) == (4, 3)
    with pytest.raises(UserError, match="give --coordinator=HOST:PORT"):
        joined(OPEN_MPI)


def test_a_tpu_host_of_its_own(joined, monkeypatch):
    """Where no metadata server knows of others, JAX finds no cluster: that is no error."""
    monkeypatch.setattr(distributed, "_has_tpu", lambda: True)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)

    def nothing_found(**kwargs):
        raise ValueError("coordinator_address should be defined.")

    assert joined() == {}
    monkeypatch.setattr(jax.distributed, "initialize", nothing_found)
    assert joined() is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "host"}, "expected HOST:PORT"),
        ({"coordinator": "h:1"}, "no cluster says what the flags leave out"),
        ({"coordinator": "h:1", "num_processes": 2}, "no cluster says"),
        ({"coordinator": "h:1", "num_processes": 0, "process_id": 0}, "expected at least 1"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "expected 0 to 1"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": -1}, "expected 0 to 1"),
    ],
    ids=str,
)
def test_flags_that_do_not_fit(joined, flags, message):
    with pytest.raises(UserError) as error:
        joined({}, **flags)
    assert message in str(error.value)


def test_a_pod_without_the_kubernetes_package(joined):
    with pytest.raises(UserError, match="pip install kubernetes"):
        joined(KUBERNETES)


def test_errors_of_jax_are_named(joined, monkeypatch):
    def refuse(**kwargs):
        raise RuntimeError("Retry failed")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match="cannot join: Retry failed"):
        joined({}, "h:1", 2, 1)


def test_nobody_waits_for_ever(joined, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: threading.Event().wait())
    with pytest.raises(UserError, match=r"after 0.1 s the 2 processes .* have not met at h:1"):
        joined({}, "h:1", 2, 1, timeout=0.1)


def test_a_wrong_coordinator_ends_in_one_line():
    code = (
        "from vit_jax import cli\nfrom vit_jax.devices import distributed\nimport sys\n"
        f"address = '127.0.0.1:{processes.free_port()}'\n"
        "sys.exit(cli.guarded(lambda: distributed.initialize(address, 2, 1, timeout=2)))"
    )
    ((status, out, errors),) = processes.finish(processes.start(["-c", code]))
    assert (status, out) == (2, "")
    assert errors.startswith("vit-jax: error: after 2 s the 2 processes of this run have not met")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("dtype", CONTRAST_BOUNDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_contrast_as_one_device_does(two, loss, dtype):
    """The loss, its figures, and its gradients for all vectors, factor and bias."""
    with jax.enable_x64(dtype == "float64"):
        pairs = CONTRAST[1]
        given = [x.astype(dtype) for x in (*contrast.vectors(pairs), *contrast.learned(dtype))]
        wanted = jax.jit(contrast.loss_and_grad(loss, pairs))(*given)
    found = json.loads((two / f"{loss}_{dtype}.json").read_text())
    most = CONTRAST_BOUNDS[dtype]
    for one, other in zip(found, jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=most, atol=most)

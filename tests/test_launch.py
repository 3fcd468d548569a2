"""The files that start a run: valid where they are read, and true to the statuses of a run."""

import pathlib
import re
import shlex
import subprocess
import tomllib

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from vit_jax import main
from vit_jax.errors import Status, UserError
from vit_jax.train.actions import profiling

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
FINAL = [Status.BAD_INPUT, Status.DIVERGED]
AGAIN = [Status.LOST_PEER, Status.HUNG, Status.PREEMPTED]
# The fields of a JobSet, by the reference of its API (jobset.x-k8s.io/v1alpha2). A template is a
# Kubernetes Job, which has a schema.
JOBSET = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": str, "annotations": dict},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": "FailJobSet", "onJobFailureReasons": list}],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": dict}],
    },
}


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def assert_like(found, form) -> None:
    """Every field is one of the form's, and has its type or its value."""
    if isinstance(form, dict):
        assert found.keys() <= form.keys()
        for name in found:
            assert_like(found[name], form[name])
    elif isinstance(form, list):
        for item in found:
            assert_like(item, form[0])
    elif isinstance(form, type):
        assert isinstance(found, form)
    else:
        assert found == form


def jobs() -> dict[str, dict]:
    jobset = documents("jobset.yaml")[0]
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    one_slice = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "vit"}, **template}
    return {"jobset.yaml": one_slice, "job.yaml": documents("job.yaml")[1]}


def test_the_jobset_has_the_fields_of_a_jobset():
    assert_like(documents("jobset.yaml")[0], JOBSET)


@pytest.mark.parametrize("name", ["jobset.yaml", "job.yaml"])
def test_jobs_are_valid_and_end_for_good_where_another_start_would_not_help(name):
    job = jobs()[name]
    kubernetes_validate.validate(job, "1.31", strict=True)
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    (container,) = spec["template"]["spec"]["containers"]
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert fail["action"] == "FailJob"
    assert fail["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": FINAL
    }  # fmt: skip
    assert ignore["action"] == "Ignore"
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # Only such pods may have a failure policy; and a run needs time to save.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    assert_trains(container["args"])


def test_a_field_that_kubernetes_does_not_know_is_found():
    job = jobs()["job.yaml"]
    job["spec"]["podFailurePolicies"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)


def test_the_pods_of_the_job_meet_at_its_service():
    service, job = documents("job.yaml")
    kubernetes_validate.validate(service, "1.31", strict=True)
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--coordinator={name}-0.{service['metadata']['name']}:1234" in args
    assert f"--num_processes={job['spec']['completions']}" in args


def assert_trains(words: list[str]) -> None:
    """Whether these are words that `vit-jax train` takes."""
    assert words[0] == "train"
    number = re.compile(r"\$\(?\w+\)?$")
    config, options = main.parse([number.sub("1", word) for word in words[1:]])
    assert config.total_steps
    assert options.workdir


SLURM_OPTIONS = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal",
    "requeue", "open-mode", "output",
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), *((s, 0, False) for s in [1, *FINAL]), *((s, 3, True) for s in [*AGAIN, 137]),
     (Status.PREEMPTED, 100, False)],
)  # fmt: skip
def test_slurm_queues_a_job_again_after_the_right_statuses(status, restarts, again, tmp_path):
    calls = tmp_path / "calls"
    for name, ends in (("srun", status), ("scontrol", 0)):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/sh\necho {name} "$@" >>{calls}\nexit {int(ends)}\n')
        fake.chmod(0o755)
    done = subprocess.run(
        [LAUNCH / "slurm.sh", "--config=vit:b16,cifar10", "--workdir=runs/a b"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
        },
    )
    assert done.returncode == status
    first, *rest = calls.read_text().splitlines()
    assert rest == ["scontrol requeue 7"] * again
    words = first.partition(" vit-jax ")[2]
    assert words.startswith("train --config=vit:b16,cifar10 --workdir=runs/a b --config.data")


def test_slurm_reads_the_options_of_the_script():
    options = re.findall(r"^#SBATCH --([\w-]+)", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    assert set(options) == SLURM_OPTIONS


def test_skypilot_recovers_after_the_right_statuses():
    (task,) = documents("sky.yaml")
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == AGAIN
    assert recovery["strategy"] in ("EAGER_NEXT_REGION", "FAILOVER")
    assert task.keys() == {
        "name", "num_nodes", "resources", "workdir", "file_mounts", "setup", "run"
    }  # fmt: skip
    # The shell that runs it gives the right words.
    script = task["run"].replace("vit-jax", "printf '%s\\n'")
    env = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    done = subprocess.run(
        ["bash", "-c", script],
        env=env | {"SKYPILOT_NODE_RANK": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    assert "--coordinator=10.0.0.1:1234" in words
    assert words[-2:] == ["--num_processes=2", "--process_id=1"]
    assert_trains(words)


def test_the_image_has_what_the_package_needs_and_pins_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = [line for line in (LAUNCH / "constraints.txt").read_text().splitlines() if "==" in line]
    versions = dict(pin.split("==") for pin in pins)
    for text in project["project"]["dependencies"]:
        need = Requirement(text)
        name = re.sub(r"[-_.]+", "-", need.name).lower()
        assert versions[name] in need.specifier, name
    assert versions["libtpu"]  # of the extra `tpu`
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / name).exists() for name in copied)
    assert project["tool"]["setuptools"]["package-dir"] == {"vit_jax.configs": "configs"}
    extras = re.findall(r"EXTRAS=(\w+)", "\n".join(lines))
    assert (
        set(extras) == {"tpu", "cuda", "plot"} <= project["project"]["optional-dependencies"].keys()
    )
    assert "USER vit" in lines
    assert 'ENTRYPOINT ["vit-jax"]' in lines
    assert project["project"]["scripts"]["vit-jax"] == "vit_jax.cli:main"


def commands() -> list[str]:
    """Every line of the code blocks of docs/distributed.md, lines that go on joined."""
    text = (ROOT / "docs" / "distributed.md").read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def check_command(line: str) -> None:
    """Raises unless the command is one that exists here, with words that it takes."""
    words = shlex.split(line, comments=True)
    files = [ROOT / word for word in words if word.startswith("launch/")]
    assert all(path.is_file() for path in files)
    match words:
        case ["vit-jax", *rest] | [_, "vit-jax", *rest] if "…" in rest:
            known = main.parse(["--config=vit:b16,cifar10", "--workdir=w"])[1]
            flags = [word.lstrip("-").partition("=")[0] for word in rest if word.startswith("--")]
            assert all(hasattr(known, flag) for flag in flags)
        case ["vit-jax", "train", *rest]:
            assert_trains(["train", *rest])
        case ["gcloud", *_] | ["xpk", *_]:
            (command,) = [w.removeprefix("--command=") for w in words if "vit-jax train" in w]
            check_command(command)
        case ["sbatch", "launch/slurm.sh", *rest]:
            assert_trains(["train", *rest])
        case ["docker", "build", "-f", "launch/Dockerfile", *rest]:
            assert "EXTRAS=tpu" in rest
        case ["kubectl", "apply", "-f", _] | ["sky", "jobs", "launch", _]:
            assert len(files) == 1
        case ["kill", "-USR1", "PID"]:  # tests/train/test_hangs.py
            pass
        case ["touch", path]:
            assert pathlib.PurePath(path).name == profiling._ASKS
        case _:
            raise AssertionError(f"no test knows this command: {line}")


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_documentation_exists(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_command(line)


@pytest.mark.parametrize(
    "line",
    ["vit-jax train --config=vit:b16,cifar10 --workdir w --coordinater=h:1", "sky x", "make"],
)
def test_a_command_that_does_not_exist_is_found(line):
    with pytest.raises((AssertionError, UserError)):
        check_command(line)

"""The whole life of a run in an object store: what it is on a disk, it is there, bit for bit."""

import json
import os
import pathlib
import signal

import object_stores
import processes
import pytest
import tiny_run

from vit_jax import cli, main, stores, train
from vit_jax.errors import UserError
from vit_jax.train import checkpointing

STEPS = 12


@pytest.fixture(scope="module")
def store():
    with object_stores.s3() as (root, variables):
        yield root, variables


@pytest.fixture(scope="module")
def images(store, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The same images on the disk and in the store."""
    folder = tiny_run.write_images(tmp_path_factory.mktemp("data") / "images")
    return folder, object_stores.upload(folder, f"{store[0]}/images")


def flags(images, workdir) -> list[str]:
    recipe = f"--config={processes.TESTS}/tiny_run.py"
    return [recipe, f"--config.dataset={images}", f"--workdir={workdir}", *SHORT]


SHORT = [f"--config.total_steps={STEPS}"]


@pytest.fixture(scope="module")
def on_disk(images, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("disk") / "run"
    assert main.run(flags(images[0], workdir)) == 0
    return workdir


@pytest.fixture(scope="module")
def in_store(store, images, on_disk) -> str:
    """A run that was killed and has gone on."""
    root, variables = store
    if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # in which `on_disk` left its code
        variables = variables | {"JAX_COMPILATION_CACHE_DIR": cache}
    process = processes.start(
        ["-c", KILLED, *flags(images[0], f"{root}/run")], devices=4, **variables
    )
    ((status, _, errors),) = processes.finish(process)
    assert status == -signal.SIGKILL, errors[-3000:]
    left = stores.files_below(stores.path(f"{root}/run"))
    assert "run.lock" in left
    assert main.run(flags(images[0], f"{root}/run")) == 0
    return f"{root}/run"


# The fifth step has a checkpoint in the store; figures of more steps are on the way.
KILLED = """
import os, signal, sys, time
from vit_jax import main, stores
from vit_jax.train import metrics, mirror
mirror.EVERY = 0.3
write = metrics.MetricWriter.write
workdir = sys.argv[3].partition("=")[2]
def dying(self, step, figures):
    write(self, step, figures)
    while step == 8 and not stores.is_file(f"{workdir}/checkpoint_5/_CHECKPOINT_METADATA"):
        time.sleep(0.01)
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
metrics.MetricWriter.write = dying
main.run(sys.argv[1:])
"""


def test_a_killed_run_goes_on_as_the_uninterrupted_one(on_disk, in_store, tmp_path):
    copy = object_stores.download(in_store, tmp_path)
    assert tiny_run.lines(in_store) == tiny_run.lines(on_disk)
    assert tiny_run.stored(copy) == tiny_run.stored(on_disk)
    assert {p.name for p in copy.iterdir()} >= {"run.json", "metrics.jsonl"}
    assert "run.lock" not in stores.files_below(stores.path(in_store))
    assert len(list(copy.glob("events.out.tfevents.*"))) >= 1
    assert checkpointing.stored_steps(in_store, "accuracy_test") == checkpointing.stored_steps(
        on_disk, "accuracy_test"
    )


def said(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))


def test_commands_read_and_write_there_what_they_do_on_a_disk(
    on_disk, in_store, images, store, cache, tmp_path, capsys
):
    """eval, predict, convert and plot of the run, and to the store."""
    root = store[0]

    def both(*words: str) -> tuple[str, str]:
        """What a command says on the disk and in the store, with their names taken out."""
        places = ({"RUN": on_disk, "IMAGES": images[0], "OUT": tmp_path / "out"},)
        places += ({"RUN": in_store, "IMAGES": images[1], "OUT": f"{root}/out"},)
        found = []
        for place in places:
            filled = list(words)
            for name, where in place.items():
                filled = [word.replace(name, str(where)) for word in filled]
            text = said(capsys, *filled)
            for name, where in place.items():
                text = text.replace(str(where), name)
            found.append(text)
        return found[0], found[1]

    (tmp_path / "out").mkdir()
    for words in (
        ("eval", "RUN", "--dataset", "IMAGES", "--json"),
        ("predict", "RUN", "IMAGES/test/cat/0.png", "--output", "OUT/found.csv"),
        ("convert", "RUN", "OUT/x.npz", "--to", "official"),
    ):
        disk, there = both(*words)
        assert there == disk, words
    for name in ("found.csv", "x.npz"):
        content = stores.read_bytes(f"{root}/out/{name}")
        if name == "found.csv":  # It names images by their places.
            content = content.replace(images[1].encode(), str(images[0]).encode())
            assert content == (tmp_path / "out" / name).read_bytes()
    said(capsys, "plot", in_store, "--out", f"{root}/out/run.svg")
    assert stores.read_bytes(f"{root}/out/run.svg").startswith(b"<?xml")
    # What was written there is read from there.
    inspected = json.loads(said(capsys, "inspect", f"{root}/out/x.npz", "--json"))
    assert inspected["num_params"] > 0


def test_a_run_of_another_config_is_refused_by_its_address(in_store, images):
    with pytest.raises(UserError, match=f"{in_store} holds a run with another config: base_lr"):
        main.run([*flags(images[0], in_store), "--config.base_lr=0.5"])


def test_a_branch_of_a_run_there_and_evaluations_of_images_there(
    on_disk, in_store, images, tmp_path
):
    """The run and the images that a config names may lie in stores, each in another one."""

    def branched(name: str, run: object, one: object, other: object) -> pathlib.Path:
        config = tiny_run.config(
            images[0],
            total_steps=STEPS,
            resume_from=f"{run}@10",
            evals={"one": {"dataset": str(one)}, "other": {"dataset": str(other)}},
        )
        train.train_and_evaluate(config, tmp_path / name)
        return tmp_path / name

    before = stores.files_below(stores.path(in_store))
    with object_stores.memory() as (root, _):
        copy = object_stores.upload(images[0], f"{root}/images")
        there = branched("there", in_store, images[1], copy)
    assert stores.files_below(stores.path(in_store)) == before
    here = branched("here", on_disk, images[0], images[0])
    assert tiny_run.lines(there) == tiny_run.lines(here)
    assert tiny_run.stored(there) == tiny_run.stored(here)
    _, *evaluated = tiny_run.lines(there)[-4:]
    names = ("loss_test", "one/loss", "other/loss")
    (loss,) = {line[name] for line, name in zip(evaluated, names, strict=True)}
    assert loss > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume_from": "{root}/nothing@6"}, "{root}/nothing is not a run directory"),
        (
            {"resume_from": "{root}/run@7"},
            "{root}/run has no checkpoint of step 7; it has [10, 12]",
        ),
        (
            {"evals": {"a": {"dataset": "{root}/none"}}},
            "config.evals.a: there is no folder and no file {root}/none",
        ),
    ],
    ids=str,
)
def test_an_address_in_the_config_that_cannot_be_used(
    store, in_store, images, tmp_path, changes, message
):
    filled = json.loads(json.dumps(changes).replace("{root}", store[0]))
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(
            tiny_run.config(images[0], total_steps=STEPS, **filled), tmp_path / "run"
        )
    assert message.replace("{root}", store[0]) in str(error.value)
    assert not list(tmp_path.glob("run/checkpoint_*"))


def test_an_address_that_cannot_be_used_is_one_message(store, images, capsys):
    for workdir, message in (
        ("s3://no-such-bucket/run", "cannot write to --workdir=s3://no-such-bucket/run: "),
        ("nope://b/run", "nothing reads addresses of nope://"),
    ):
        with pytest.raises(UserError) as error:
            main.run(flags(images[0], workdir))
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    words = ["eval", f"{store[0]}/nothing", "--dataset", str(images[0])]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("vit-jax: error: cannot fetch s3://bucket/nothing: ")


@pytest.mark.slow
def test_two_processes_are_one_run_there_too(store, images, tmp_path):
    """Sharded over both; the second start has lost the last checkpoint, and makes it again."""
    root, variables = store

    def train(workdir) -> None:
        config = {"images": str(images[0]), "total_steps": 12, "mesh__fsdp": 2, "dropout": False}
        job = {"do": "train", "workdir": str(workdir), "config": config}
        tiny_run.write_json(tmp_path / "jobs.json", [job])
        words = [processes.TESTS / "run_worker.py", tmp_path / "jobs.json"]
        started = [
            processes.start([*words, *own], devices=2, **variables) for own in processes.together(2)
        ]
        processes.succeed(*started)

    train(tmp_path / "disk")
    train(f"{root}/two")
    for turn in range(2):
        copy = object_stores.download(f"{root}/two", tmp_path / f"copy{turn}")
        assert tiny_run.lines(copy) == tiny_run.lines(tmp_path / "disk")
        assert tiny_run.stored(copy) == tiny_run.stored(tmp_path / "disk")
        if turn == 0:
            stores.remove([stores.path(f"{root}/two/checkpoint_12")], recursive=True)
            train(f"{root}/two")

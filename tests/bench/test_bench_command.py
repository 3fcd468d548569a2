"""`vit-jax bench` at tiny sizes: what it reports, and what it says of bad input."""

import json
import subprocess
import sys

import pytest
import timm

from vit_jax import cli
from vit_jax.bench import measuring, theirs
from vit_jax.errors import UserError

TINY = ["--image-size", "32", "--batch", "2", "--rounds", "2"]


def bench(*arguments):
    return cli.main(["bench", *arguments])


def test_ours_and_timm_take_turns(capsys):
    assert bench("ViT-Ti_16", *TINY, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    (result,) = report["results"]
    assert [timing["name"] for timing in result["timings"]] == ["vit_jax", "timm"]
    for timing in result["timings"]:
        assert 0 < timing["least_seconds"] <= timing["median_seconds"] <= timing["most_seconds"]
        assert timing["images_per_second"] == pytest.approx(2 / timing["median_seconds"])
    assert "jax" in report["versions"]
    assert report["device"].startswith("CPU")


@pytest.mark.parametrize(("mode", "trains"), [("forward", False), ("train", True)])
def test_timm_does_the_same_work(monkeypatch, mode, trains):
    made = []
    create = timm.create_model

    def remembered(*args, **kwargs):
        made.append(create(*args, **kwargs))
        return made[0]

    monkeypatch.setattr(timm, "create_model", remembered)
    subject = theirs.subject("ViT-Ti_16", mode, 2, 32, "bfloat16", compiled=False)
    before = {name: value.clone() for name, value in made[0].state_dict().items()}
    subject.run()
    after = made[0].state_dict()
    changed = [name for name, value in before.items() if (after[name] != value).any()]
    assert len(changed) == (len(before) if trains else 0)


def test_a_table_for_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vit-jax", "bench", "a model"])
    assert bench("testing", "--mode", "train", "--against", "none", *TINY, "--markdown") == 0
    header, rule, row, about = capsys.readouterr().out.splitlines()
    assert header.startswith("| model | who | ms |")
    assert set(rule) <= set("|-:")
    assert row.startswith("| testing | vit_jax |")
    assert about.endswith("vit-jax bench 'a model'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ViT-B_61"], "did you mean"),
        (["ViT-B_16", "--batch", "0"], "--batch"),
        (["ViT-B_16", "--rounds", "0"], "--rounds"),
        (["testing", "--mode", "train", *TINY], "timm has no model 'testing'"),
        (["testing", "--attend", "cudnn", *TINY], "GPU"),
        (["testing", "--attend", "fast", *TINY], "Known: auto"),
    ],
)
def test_bad_input_is_one_message(arguments, message, capsys):
    assert bench(*arguments) == cli.BAD_INPUT
    out, error = capsys.readouterr()
    assert message.lower() in error.lower()
    assert (error.count("\n"), out) == (1, "")


def test_each_runs_once_a_round():
    order = []
    subjects = [measuring.Subject(name, lambda name=name: order.append(name)) for name in "ab"]
    timings = measuring.in_turns(subjects, batch=4, rounds=3)
    assert order == list("ab" * 5)
    assert [len(timing.seconds) for timing in timings] == [3, 3]


@pytest.mark.parametrize("words", ["RESOURCE_EXHAUSTED: Out of memory", "CUDA out of memory."])
def test_out_of_memory_says_whose(words):
    def run():
        raise RuntimeError(words)

    with pytest.raises(UserError, match="timm ran out of memory"):
        measuring.in_turns([measuring.Subject("timm", run)], batch=4, rounds=1)


def test_other_failures_are_not_hidden():
    def run():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measuring.in_turns([measuring.Subject("timm", run)], batch=4, rounds=1)


def test_the_gpu_benchmark_runs_at_a_tiny_size(request):
    script = request.config.rootpath / "benchmarks" / "gpu.py"
    command = [sys.executable, str(script), "testing", "--batches", "2", "--against", "none"]
    done = subprocess.run(
        [*command, "--image-size", "32", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    *_, best, xla = done.stdout.splitlines()
    assert best.startswith("testing best, batch 2: vit_jax ")
    assert xla.startswith("testing best, batch 2: vit_jax, attend xla ")

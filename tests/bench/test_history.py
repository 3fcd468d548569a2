"""`vit-jax bench --history`: a regression is told from noise."""

import json

import numpy as np
import pytest

from vit_jax import cli
from vit_jax.bench import history
from vit_jax.bench.measuring import Timing
from vit_jax.commands import bench

ABOUT = {"model": "ViT-B_16", "machine": "here"}


def measured(scale, rng, spread, about=ABOUT, load=1.0):
    """Ten rounds of ours and of a peer, both slowed by `load`."""
    ours, peer = load * (1 + spread * rng.standard_normal((2, 10)))
    return history.entry(about, list(scale * ours), list(peer))


@pytest.mark.parametrize(
    ("scale", "spread", "slower"),
    [(1.0, 0.01, False), (1.1, 0.01, True), (1.015, 0.0, False), (1.1, 0.2, False), (2, 0.2, True)],
)
def test_slower_is_what_noise_does_not_explain(scale, spread, slower):
    rng = np.random.default_rng(0)
    earlier = [measured(1.0, rng, spread, load=1 + i) for i in range(5)]
    verdict = history.judge(measured(scale, rng, spread, load=3), earlier)
    assert verdict.slower == slower
    assert verdict.earlier == 5
    assert verdict.text.startswith("SLOWER") == slower


def test_other_machines_and_models_do_not_count():
    rng = np.random.default_rng(0)
    earlier = [measured(1.0, rng, 0.01, ABOUT | {"machine": "there"})]
    assert history.judge(measured(2.0, rng, 0.01), earlier).earlier == 0


def test_the_command_keeps_what_it_measures(monkeypatch, tmp_path, capsys):
    seconds = [1.0]
    monkeypatch.setattr(
        bench, "_measure", lambda *_: [Timing("vit_jax", (seconds[0],) * 3, 1.0, 8, None)]
    )
    path = tmp_path / "history.jsonl"
    command = ["bench", "testing", "--against", "none", "--history", str(path), "--fail-if-slower"]
    for factor, status, text in [
        (1.0, 0, "first"),
        (1.0, 0, "the same"),
        (1.2, 1, "SLOWER: 1.200"),
    ]:
        seconds[0] = factor
        assert cli.main(command) == status
        assert text in capsys.readouterr().out
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["values"] for entry in entries] == [[1.0] * 3, [1.0] * 3, [1.2] * 3]
    assert not list(tmp_path.glob("*.tmp"))
    path.write_text("nonsense\n")
    assert cli.main(command) == 2
    assert "line 1 is no measurement" in capsys.readouterr().err
    assert cli.main(["bench", "testing", "--fail-if-slower"]) == 2

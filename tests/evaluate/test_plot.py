"""`vit-jax plot`: what is drawn, from which lines, and what it leaves behind."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.evaluate import plot


def lines_of_a_run(steps=300, every=100, noise=0.3):
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        loss = 2.0 * np.exp(-step / steps) + noise * rng.normal()
        yield {"step": step, "train_loss": loss, "lr": 0.1 * (1 - step / steps)}
        if step % every == 0:
            yield {"step": step, "accuracy_test": step / steps / 2, "loss_test": loss + 0.1}


@pytest.fixture
def make_run(tmp_path):
    def make(name, lines=None):
        (tmp_path / name).mkdir(parents=True)
        lines = lines_of_a_run() if lines is None else lines
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
        return tmp_path / name

    return make


def drawn(monkeypatch, *runs):
    """The figure that would be written."""
    figures = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, out: figures.append(figure))
    plot.plot(runs, "run.png")
    return figures[0]


def test_named_evaluations_are_drawn_beside_the_test_split(make_run, monkeypatch):
    lines = [*lines_of_a_run(steps=40, every=40)]
    lines.append({"step": 40, "minival/accuracy": 0.25, "minival/loss": 1.5})
    figure = drawn(monkeypatch, make_run("run", lines))
    loss, accuracy, _ = figure.axes
    assert [40, 1.5] in [list(point) for line in loss.lines for point in line.get_xydata()]
    assert [40, 25] in [list(point) for line in accuracy.lines for point in line.get_xydata()]
    assert "minival" in " ".join(text.get_text() for text in accuracy.texts)


def test_every_figure_of_the_run_is_drawn(make_run, monkeypatch):
    lines = list(lines_of_a_run(steps=120, every=40))
    loss, accuracy, rate = drawn(monkeypatch, make_run("run", lines)).axes
    train = [(x["step"], x["train_loss"]) for x in lines if "train_loss" in x]
    test = [(x["step"], x["loss_test"]) for x in lines if "loss_test" in x]
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), train)
    np.testing.assert_array_equal(loss.lines[1].get_xydata(), test)
    percent = [(x["step"], 100 * x["accuracy_test"]) for x in lines if "accuracy_test" in x]
    np.testing.assert_array_equal(accuracy.lines[0].get_xydata(), percent)
    np.testing.assert_array_equal(
        rate.lines[0].get_xydata(), [(x["step"], x["lr"]) for x in lines if "lr" in x]
    )
    assert [text.get_text() for text in accuracy.texts] == ["50.00"]


def test_what_shows_a_runs_health_is_drawn_below(make_run, monkeypatch):
    figures = {"grad_norm": 2.0, "update_norm": 0.1, "param_norm": 9.0, "step_seconds": 0.5}
    figures |= {"data_wait_seconds": 0.25, "skipped_updates": 1, "rollbacks": 0}
    lines = [{**line, **figures} for line in lines_of_a_run(steps=3) if "lr" in line]
    lines.append({"step": 3, "save_seconds": 4.0})
    old = list(lines_of_a_run(steps=3))
    axes = drawn(monkeypatch, make_run("new", lines), make_run("old", old)).axes
    _, _, _, grad, update, step, evaluation, counts, empty = axes
    assert not empty.get_visible()
    for panel in axes[:-1]:
        assert panel.xaxis.get_tick_params()["labelbottom"]
    assert [x.get_yscale() for x in (grad, update, step)] == ["log", "log", "linear"]
    for panel, solid, dotted in (
        (grad, "grad_norm", None),
        (update, "update_norm", "param_norm"),
        (step, "step_seconds", "data_wait_seconds"),
        (counts, "skipped_updates", "rollbacks"),
    ):
        shown = [
            [(at, figures[name]) for at in (1, 2, 3)] if name else [] for name in (solid, dotted)
        ]
        assert [line.get_xydata().tolist() for line in panel.lines[:2]] == [
            [list(point) for point in points] for points in shown
        ]
    assert evaluation.lines[1].get_xydata().tolist() == [[3, 4.0]]


def test_runs_are_overlaid_with_a_legend(make_run, monkeypatch):
    runs = [make_run(f"{group}/seed{i}") for group in "ab" for i in range(5)]
    figure = drawn(monkeypatch, *runs)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [
        f"{group}/seed{i}" for group in "ab" for i in range(5)
    ]
    rate = figure.axes[2]
    styles = {(line.get_color(), line.get_linestyle()) for line in rate.lines}
    assert len(rate.lines) == len(styles) == 10


def test_names_are_as_long_as_needed(tmp_path):
    assert plot.names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert plot.names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    assert plot.names([tmp_path / "a" / ".."]) == [tmp_path.name]
    with pytest.raises(UserError, match="given twice"):
        plot.names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


@pytest.mark.parametrize("count", [1, 2, 5, 250, 1000])
def test_the_moving_mean(count):
    values = np.random.default_rng(0).normal(size=count)
    half = max(count // 100, 1)
    expected = [values[max(i - half, 0) : i + half + 1].mean() for i in range(count)]
    np.testing.assert_allclose(plot.smoothed(values), expected, atol=1e-12)


def test_many_points_are_drawn_faintly_under_their_mean(make_run, monkeypatch):
    lines = list(lines_of_a_run(steps=300))
    loss = drawn(monkeypatch, make_run("run", lines)).axes[0]
    raw = np.array([x["train_loss"] for x in lines if "train_loss" in x])
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), raw)
    assert loss.lines[0].get_alpha() < 0.5
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), plot.smoothed(raw))


@pytest.mark.parametrize(
    "lines",
    [
        [{"step": 1, "train_loss": 1.0, "lr": 0.1}],  # nothing evaluated yet
        [{"step": 1, "accuracy_test": 0.5, "loss_test": 1.0}],
        [{"step": i, "train_loss": float("nan"), "lr": 0.1} for i in range(1, 400)],
        [{"step": 1, "accuracy_test": float("nan"), "loss_test": float("inf")}],
        [{"step": 1, "img_sec": 5.0}],
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_runs_with_gaps_can_be_drawn(make_run, tmp_path, lines, suffix):
    plot.plot([make_run("run", lines)], tmp_path / f"out{suffix}")
    assert (tmp_path / f"out{suffix}").stat().st_size > 1000


def test_the_command_writes_an_image(make_run, tmp_path, capsys):
    out = tmp_path / "run.png"
    assert cli.main(["plot", str(make_run("one")), str(make_run("two")), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as image:
        assert image.size == (1950, 600)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in plot._COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(-1).sum() > 100, f"no run in {colour}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "run.png", "two"]


@pytest.mark.parametrize("steps", [1, 3, 50, 25_000])
@pytest.mark.parametrize("best", [0.5, 1.0])
def test_ticks_are_steps_and_an_accuracy_ends_at_100_percent(make_run, monkeypatch, steps, best):
    every = max(steps // 5, 1)
    lines = [{"step": s, "train_loss": 1.0, "lr": 0.1} for s in range(1, steps + 1, every)]
    lines += [
        {"step": s, "accuracy_test": best * (s > 1), "loss_test": 1.0}
        for s in range(1, steps + 1, every)
    ]
    figure = drawn(monkeypatch, make_run("run", lines))
    for axes in figure.axes:
        low, high = axes.get_xlim()
        inside = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert inside
        assert all(tick == round(tick) for tick in inside)
    low, high = figure.axes[1].get_ylim()
    assert 0 <= low < high <= 100


def test_a_single_point_is_seen(make_run, monkeypatch):
    lines = [{"step": 1, "train_loss": 1.0, "lr": 0.1}]
    loss, _, rate = drawn(monkeypatch, make_run("run", lines)).axes
    assert loss.lines[0].get_marker() == rate.lines[0].get_marker() == "o"


def test_a_place_that_cannot_be_written_is_named_itself(tmp_path, monkeypatch):
    """Where the file system is read-only, removing a file that is not there fails too."""

    def refuse(path, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    for name in ("os.unlink", "os.remove", "pathlib.Path.unlink", "pathlib.Path.open"):
        monkeypatch.setattr(name, refuse)
    with pytest.raises(UserError) as error:
        plot.save_figure(None, tmp_path / "run.png")
    assert str(error.value) == f"cannot write '{tmp_path}/run.png': Read-only file system"


def test_an_svg_is_xml_and_the_same_each_time(make_run, tmp_path):
    run = make_run("run")
    for name in ("a.svg", "b.svg"):
        plot.plot([run], tmp_path / name)
    assert ET.parse(tmp_path / "a.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_half_written_last_line_is_no_hindrance(make_run, tmp_path):
    run = make_run("run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 301, "train_lo')
    plot.plot([run], tmp_path / "run.png")


def test_bad_input_is_one_message_and_nothing_is_left(make_run, tmp_path, capsys):
    run = make_run("run")
    (tmp_path / "empty").mkdir()
    cases = [
        ([run, "--out", tmp_path / "run.gif"], ".png or .svg"),
        ([run, "--out", tmp_path / "missing" / "run.png"], "No such file or directory"),
        ([tmp_path / "empty"], "is not the workdir of a run: no readable metrics.jsonl"),
        ([tmp_path / "nowhere"], "is not the workdir of a run"),
        ([make_run("started", [])], "has not logged anything yet"),
        ([run, run], "given twice"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for argv, message in cases:
        assert cli.main(["plot", *map(str, argv)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_matplotlib_missing_is_said_with_the_remedy(make_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'pip install "vit-jax\[plot\]"'):
        plot.plot([make_run("run")], tmp_path / "run.png")


def test_plotting_loads_neither_jax_nor_a_display(make_run, tmp_path):
    code = (
        "import sys; from vit_jax import cli; status = cli.main(sys.argv[1:]);"
        "heavy = {'jax', 'matplotlib.pyplot', 'tkinter', 'tensorboardX'} & set(sys.modules);"
        "sys.exit(status or ', '.join(heavy) or 0)"
    )
    argv = ["plot", str(make_run("run")), "--out", str(tmp_path / "run.svg")]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

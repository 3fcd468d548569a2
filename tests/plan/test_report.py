"""What a plan says to people: text, tables, picture."""

import dataclasses
import re

import pytest

from vit_jax.plan import chart, report
from vit_jax.plan.report import Memory, Plan
from vit_jax.plan.traffic import Traffic, Work


def plan(kind="TPU v5 lite", limit: float | None = 16.91e9, cycles=54_300_000, scale=1.0, **fields):
    """As of ViT-B/16 on v5e:4x4, 64 images a chip."""
    classes = {
        "moves": Work(2477, int(4.63e9 * scale), cycles // 20),
        "matrix products": Work(149, int(8.43e9 * scale), cycles),
        "all-reduce": Work(3, int(0.17e9 * scale), 0),
    }
    sizes = (int(size * scale) for size in (1.08e9, 2.64e9, 0, 0.15e9))
    values = {
        "topology": "v5e:4x4",
        "device_kind": kind,
        "devices": 16,
        "mesh": {"data": 16, "fsdp": 1, "model": 1},
        "batch": 1024,
        "accum_steps": 1,
        "image_flops": 105.4e9,
        "memory": Memory(*sizes),
        "traffic": Traffic(classes, {"all-reduce": (3, 173_300_000)}),
        "compile_seconds": 63.0,
        "limit": limit,
    }
    return Plan(**values | fields)


def test_every_figure_of_a_step():
    assert report.lines(plan()) == [
        "v5e:4x4: 16 × TPU v5 lite (data 16)",
        "batch 1024, 64 images a device; compiled in 63 s. On each device, a step:",
        "  memory       3.87 GB of 16.91: fits",
        "               arguments 1.08, temporaries 2.64, outputs 0.00, program 0.15",
        "  FLOPs        6.75 T, of the model alone",
        "  HBM traffic  13.23 GB",
        "  time         at least 38.0 ms (FLOPs at peak 34.2, HBM traffic 16.2, estimated cycles "
        "38.0)",
        "  utilisation  at most 90% of the peak FLOP/s",
    ]
    assert all(len(line) <= 100 for line in report.lines(plan()))
    columns, rows = report.class_table(plan())
    assert columns == ["class", ">count", ">HBM GB", ">1000 cycles", ">ms"]
    assert [row[0] for row in rows] == ["matrix products", "moves", "all-reduce"]
    assert rows[0] == ["matrix products", "149", "8.43", "54,300", "36.20"]
    assert report.collective_rows(plan()) == [("all-reduce", "3", "173.3")]


def test_the_network_between_slices_is_a_limit_of_its_own():
    collectives = {"all-reduce": (3, 170_000_000), "all-reduce between slices": (2, 125_000_000)}
    known = plan(topology="2*v5e:4x4", traffic=Traffic(plan().traffic.classes, collectives))
    text = report.lines(known)
    assert "  network      0.12 GB between slices at 3.125 GB/s" in text
    assert text[-2].endswith("cycles 38.0, between slices 40.0)")
    assert text[-2].startswith("  time         at least 40.0 ms")
    assert known.to_dict()["seconds"]["network"] == 0.04
    assert any("Between slices counts" in note for note in report.caveats(known))
    unknown = "\n".join(report.lines(dataclasses.replace(known, device_kind="TPU v4")))
    assert "0.12 GB between slices; its speed is not known here" in unknown
    assert "between slices 40.0" not in unknown
    assert "network" not in "\n".join(report.lines(plan()))


def test_what_does_not_fit_says_by_how_much():
    over = report.lines(plan(limit=3e9))[2]
    assert "3.87 GB of 3.00: DOES NOT FIT, 0.87 GB too much" in over


def test_what_the_optimizer_costs():
    text = report.lines(plan(optimizer_bytes=692_000_000, optimizer_flops=1.63e12))[5]
    assert text == "  optimizer    state 0.69 GB; 1.63 T FLOPs more, unless fsdp or model split it"
    assert report.lines(plan(optimizer_bytes=1e9))[5] == "  optimizer    state 1.00 GB"


def test_a_device_that_nothing_is_known_of():
    text = "\n".join(report.lines(plan(kind="cpu", limit=None)))
    assert "3.87 GB\n" in text
    assert "at least" not in text
    assert report.class_table(plan(kind="cpu"))[0][-1] == ">1000 cycles"
    assert report.class_table(plan(kind="cpu", cycles=0))[0][-1] == ">HBM GB"
    assert "cycles" not in " ".join(report.caveats(plan(kind="cpu", cycles=0)))
    assert "cycles" in " ".join(report.caveats(plan()))


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.00"), (1, "<0.001"), (5e7, "0.050"), (2e12, "2000.00")]
)
def test_small_sizes_are_not_nothing(size, text):
    assert report._gb(size) == text


@pytest.mark.parametrize("fields", [{}, {"cycles": 0, "kind": "cpu"}, {"scale": 1e-6, "cycles": 7}])
def test_the_same_plan_gives_the_same_picture(fields, tmp_path):
    for name in ("one.svg", "two.svg"):
        chart.draw(plan(**fields), tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert one == two
    titles = re.findall(r"<!-- (.*?) -->", one.decode())
    assert "HBM traffic of a device, GB a step" in titles
    assert any("Estimated cycles" in title for title in titles) == (fields.get("cycles") != 0)
    # The most expensive class on top, that is last.
    names = [title for title in titles if title in report_names(fields)]
    assert names[-1] == "matrix products"


def report_names(fields):
    return {name for name, _ in plan(**fields).traffic.most_expensive()}


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def interrupted(self, path, **options):
        path.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chart.draw(plan(), tmp_path / "plan.png")
    assert not list(tmp_path.iterdir())

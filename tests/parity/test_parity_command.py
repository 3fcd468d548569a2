"""`vit-jax parity`: its exit status, what it prints, the page that it writes."""

import dataclasses
import html
import html.parser
import json
import re

import pytest

from vit_jax import cli, parity
from vit_jax.parity import figures, report
from vit_jax.parity.libraries import timm as timm_library
from vit_jax.parity.references import Library
from vit_jax.parity.training import Recipe

TINY = {
    "model_name": "tiny",
    "patches": {"size": (8, 8)},
    "hidden_size": 24,
    "transformer": {"num_layers": 2, "num_heads": 3, "mlp_dim": 48},
    "classifier": "token",
}
SMALL = ("--model=ViT-Ti_16", "--image-size=16x32", "--images=1")


@pytest.fixture
def vit_jax(capsys):
    """Runs `vit-jax parity` in this process: (status, stdout, stderr)."""

    def run(*argv):
        status = cli.main(["parity", *(str(a) for a in argv)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def tiny():
    return parity.compare(TINY, num_classes=5, image_size=(32, 48), num_images=2)


@pytest.fixture
def prepared(monkeypatch, tiny):
    """`compare` answers with the tiny model's figures and keeps what it was asked."""
    asked = []

    def compare(model, on_step, **kwargs):
        asked.append({"model": model} | kwargs)
        return tiny

    monkeypatch.setattr(parity, "compare", compare, raising=False)
    return asked


def test_a_registered_model_is_the_same_and_the_status_is_0(vit_jax, tmp_path):
    status, out, err = vit_jax(*SMALL, f"--report={tmp_path / 'r.html'}")
    assert (status, err) == (0, "")
    assert "ViT-Ti_16 against timm" in out
    assert "1 random images of 16×32" in out
    assert re.search(r"relative error, float64 +\d\.\de-1[45] +\d\.\de-0[345]", out)
    assert re.search(r"drifts from +– +Transformer/encoderblock_0", out)
    assert re.search(r"Transformer/encoderblock_11 +\d\.\de-1[345] +\d\.\de-0[2345] *\n", out)
    assert out.splitlines()[-1].startswith("same: ")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_family_is_compared_with_what_it_was_proven_against(vit_jax):
    status, out, err = vit_jax("--model=cct_2_3x1_32", "--images=1")
    assert (status, err) == (0, "")
    assert "cct_2_3x1_32 against vit_pytorch" in out
    assert "vit_pytorch as shipped has our numerics" in out


def test_models_that_differ_have_status_1(vit_jax, monkeypatch):
    construct = timm_library.LIBRARY.construct

    def with_erf(config, state, num_classes, image_size, matched):
        return construct(config, state, num_classes, image_size, False)

    library = Library("timm", ("timm",), with_erf)
    monkeypatch.setattr(timm_library, "LIBRARY", library)
    status, out, err = vit_jax(*SMALL, "--json")
    assert (status, err) == (1, "")
    found = json.loads(out)
    assert found["verdict"] == "differs"
    assert found["matched"]["first_drift"] == "Transformer/encoderblock_0"


def test_json(vit_jax, prepared, tiny):
    options = ("--against=hf", "--weights=x.npz", "--image-size=48", "--json")
    status, out, _ = vit_jax("--model=ViT-Ti_16", *options)
    assert status == 0
    assert json.loads(out) == json.loads(json.dumps(tiny.to_dict()))
    assert prepared == [
        {
            "model": "ViT-Ti_16",
            "weights": "x.npz",
            "against": "hf",
            "image_size": (48, 48),
            "num_images": 4,
            "gradients": False,
            "train": None,
            "preprocess": [],
        }
    ]


def test_what_is_asked_for_beside_the_logits(vit_jax, prepared):
    options = ("--gradients", "--preprocess", "a.png", "b.jpg", "--train=3")
    vit_jax("--model=ViT-Ti_16", *options)
    vit_jax("--model=ViT-Ti_16", "--train=2", "--optimizer=sgd", "--learning-rate=0.1")
    adam, sgd = ((x["gradients"], x["train"], x["preprocess"]) for x in prepared)
    assert adam == (True, Recipe(3), ["a.png", "b.jpg"])
    assert sgd == (False, Recipe(2, "sgd", 0.1, weight_decay=0.0), [])


class _Page(html.parser.HTMLParser):
    """Tags that are open, and everything that would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.external, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.external += [v for k, v in attrs if k in ("src", "href", "srcset", "xlink:href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_page_with_everything_in_it(tiny):
    text = report.render(tiny)
    page = _Page(text)
    assert page.open == []
    assert page.external == []
    assert not re.search(r"@import|url\(|https?://|<script", text)
    for drift in (*tiny.matched.blocks, tiny.matched.logits):
        assert drift.theirs in page.text
        assert f"{drift.error:.1e}" in page.text
    for version in tiny.versions.values():
        assert version in page.text
    assert "erf form" in page.text
    # The chart is there twice, lettered for a page and for a phone.
    assert page.seen.count("svg") == 2
    assert page.seen.count("circle") == 2 * 3 * (len(tiny.matched.blocks) + 1)


def test_the_verdict_says_what_as_shipped_means(tiny):
    about = report.about_shipped(tiny)
    assert about.startswith("timm as shipped differs, by ")
    assert "GELU: erf form (ours: tanh form)" in about
    assert "the verdict does not count it" in about
    verdict, _, _ = report.render(tiny).partition("</div>")
    assert html.escape(about) in verdict
    same = dataclasses.replace(tiny, as_shipped=tiny.matched)
    assert report.about_shipped(same) == ""
    told = dataclasses.replace(tiny.matched, differences=tiny.as_shipped.differences)
    told = report.about_shipped(dataclasses.replace(tiny, as_shipped=told))
    assert told.startswith("timm as shipped computes the same, to ")
    wrong = dataclasses.replace(tiny, matched=tiny.as_shipped)
    assert report.about_shipped(wrong) == ""


def test_a_phone_shows_every_cell_with_the_name_of_its_column(tiny):
    text = report.render(tiny)
    narrow = text[text.index("@media (max-width: 640px)") : text.index("</style>")]
    assert "content: attr(data-label)" in narrow
    labels = re.findall(r'<td data-label="([^"]*)">', text)
    blocks = len(tiny.matched.blocks) + 1
    assert labels.count("as shipped, float64") == labels.count("theirs") == blocks
    # Letters of 11 pixels are 11 pixels only where a chart is as wide as its place.
    assert 'class="narrow"><svg viewBox="0 0 340 ' in text


def test_the_plot_draws_what_can_be_drawn():
    def setting(*errors):
        *blocks, logits = (figures.Drift(f"<{e}>", "t", e, e, e, e) for e in errors)
        return figures.Setting((), logits, tuple(blocks), 1.0)

    nan, inf = float("nan"), float("inf")
    comparison = figures.Comparison(
        "a<b>", "timm", "x & y", (8, 8), 1, setting(0.0, nan, 1.0), setting(0.0, inf, 1e30), (), {}
    )
    page = _Page(report.render(comparison))
    assert page.open == []
    assert page.seen.count("circle") == 2 * 3 * 2  # neither NaN nor infinity has a place
    assert "a<b> against timm" in page.text
    for y in re.findall(r'cy="([^"]+)"', report.render(comparison)):
        assert 0 < float(y) < 420


def test_a_report_that_cannot_be_written_is_refused_first(vit_jax, prepared, tmp_path):
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "no" / "r.html", "no directory"),
    ):
        status, out, err = vit_jax(*SMALL, f"--report={path}")
        assert (status, out) == (2, "")
        assert message in err
    assert prepared == []


def test_a_failed_report_leaves_the_old_one(vit_jax, prepared, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    status, _, err = vit_jax(*SMALL, f"--report={path}")
    assert status == 2
    assert "No space left" in err
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "--model"),
        (("--model=ViT-B_17",), "Did you mean 'ViT-B_16'"),
        (("--model=ViT-Ti_16", "--image-size=0"), "--image-size: expected pixels such as 224"),
        (("--model=ViT-Ti_16", "--image-size=12x"), "got '12x'"),
        (("--model=ViT-Ti_16", "--image-size=20"), "does not divide into patches of 16×16"),
        (("--model=ViT-Ti_16", "--against=tim"), "invalid choice: 'tim'"),
        (("--model=ViT-Ti_16", "--eps=1e-6"), "(--eps); add --train N"),
        (("--model=ViT-Ti_16", "--train=0"), "training steps must be at least 1; got 0"),
        (("--model=ViT-Ti_16", "--train=1", "--learning-rate=-1"), "learning rate must be at"),
        (("--model=ViT-Ti_16", "--train=1", "--optimizer=sgd", "--eps=1"), "SGD has none"),
        (("--model=ViT-Ti_16", "--preprocess", "no.png"), "cannot read the image no.png"),
        (("--model=ViT-Ti_16", "--images=0"), "--images must be at least 1"),
        (("--model=ViT-Ti_16", "--weights=no.npz"), "no such file or directory 'no.npz'"),
        (("--model=Mixer-B_16", "--against=hf", "--image-size=16"), "has no layout 'hf'"),
        (("--model=simple_vit_s_16",), "SimpleViT is proven against figures of big_vision"),
    ],
)
def test_bad_input(vit_jax, argv, message):
    status, out, err = vit_jax(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("vit-jax: error: ")
    assert message in err
    assert err.count("\n") == 1

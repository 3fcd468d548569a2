"""Commands of images give a model of variable size patches of each image in its aspect ratio.

Against transformers' processor and model of SigLIP 2 NaFlex.
"""

import functools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from image_helpers import encode
from recipes import GOLDEN, random_params
from transformers import Siglip2ImageProcessorPil, Siglip2Model

import vit_jax
from vit_jax import checkpoint, cli
from vit_jax.checkpoint import io, names, recorded
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import resolve, shrunk
from vit_jax.families.text import Text
from vit_jax.parity.figures import FLOAT32_BAR, relative_error
from vit_jax.tree import arrays

CLASSES = ("cat", "dog", "house")
SIZES = ((300, 420), (90, 610), (512, 330), (40, 50), (256, 256))  # height and width in pixels
TEXT = {"width": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 72, "vocab_size": 177}


def written(path, name, classes=(), **fields):
    config = resolve(name).config.to_dict()
    config |= shrunk(config) | fields
    shapes = names.expected_shapes(config, image_size=(64, 64), num_classes=len(classes))
    texts = Text("bert", str(GOLDEN / "lit/bert_vocab.txt"), 6) if "text" in fields else None
    way = Preprocess(256, antialias=True)
    told = recorded.described("tiny", config, way, list(classes), (256, 256), texts)
    variables = {"params": random_params(shapes, 0.3)}
    io.save(path, variables, model=config, metadata={recorded.OURS: json.dumps(told)})
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("naflex")
    for i, photo in enumerate(photographs()):
        path = folder / "photos" / "test" / CLASSES[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photo))
    return folder


@functools.cache
def photographs():
    """Smooth colours with some noise, as photographs have them."""
    rng, found = np.random.default_rng(0), []
    for height, width in SIZES:
        y, x = np.mgrid[:height, :width] / 100
        waves = rng.uniform(0.3, 3, (3, 2))
        colours = [np.sin(a * y + b * x) for a, b in waves]
        pixels = 127 + 100 * np.stack(colours, -1) + rng.normal(0, 8, (height, width, 3))
        found.append(pixels.clip(0, 255).astype(np.uint8))
    return found


@pytest.fixture(scope="module")
def towers(place):
    name = "siglip2-base-patch16-naflex"
    path = written(place / "towers.npz", name, text=TEXT, out_dim=(None, 32), length=6)
    checkpoint.convert(path, place / "hf", to="hf")
    return path


@pytest.fixture(scope="module")
def classifier(place):
    return written(place / "classifier.npz", "naflexvit_base_patch16_siglip", CLASSES)


def paths(place):
    return sorted(map(str, (place / "photos").rglob("*.png")), key=lambda path: path[-5])


@pytest.mark.filterwarnings("ignore")
def test_embed_and_zeroshot_are_transformers(place, towers, tmp_path, capsys):
    model = vit_jax.load(towers)
    tokens = model.tokenize(["cat", "dog", "house"])
    theirs = Siglip2Model.from_pretrained(place / "hf").eval()
    inputs = Siglip2ImageProcessorPil()(photographs(), max_num_patches=256, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(input_ids=torch.from_numpy(tokens).long(), **inputs)
    zimg, score = wanted.image_embeds.numpy(), wanted.logits_per_image.numpy()

    out = str(tmp_path / "embedded")
    assert cli.main(["embed", towers, *paths(place), "--out", out, "--batch", "2"]) == 0
    table = pq.read_table(out).to_pydict()
    assert relative_error(np.array(table["features"]), zimg) <= FLOAT32_BAR
    squashed = np.stack([np.asarray(p) for p in squares()])
    wrong = model.module.apply(model.variables, images=squashed, train=False)[0]
    assert relative_error(np.asarray(wrong), zimg) > 0.05

    capsys.readouterr()
    asked = ["--classes", ",".join(CLASSES), "--prompts", prompts(tmp_path), "--top", "3"]
    found = ["zeroshot", "--weights", towers, *asked, "--json", *paths(place)]
    assert cli.main(found) == 0
    given = probabilities(json.loads(capsys.readouterr().out))
    np.testing.assert_allclose(given, 1 / (1 + np.exp(-score)), atol=1e-5)


def squares():
    from vit_jax.input_pipeline.transforms import preprocess_image

    return [preprocess_image(image, Preprocess(256, antialias=True)) for image in photographs()]


def prompts(folder):
    (folder / "prompts.txt").write_text("{}\n")
    return str(folder / "prompts.txt")


def probabilities(rows):
    return np.array(
        [
            [p["probability"] for p in sorted(row["predictions"], key=lambda p: p["class"])]
            for row in rows
        ]
    )


def test_predict_eval_and_a_probe_see_the_same(place, classifier, capsys):
    model = vit_jax.load(classifier)
    head = arrays(model.variables["params"])
    logits = model.features(photographs()) @ head["head/kernel"] + head["head/bias"]
    assert cli.main(["predict", classifier, *paths(place), "--top", "3", "--json"]) == 0
    given = probabilities(json.loads(capsys.readouterr().out))
    np.testing.assert_allclose(given, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1e-4)

    where = ["--dataset", str(place / "photos"), "--batch", "4", "--json"]
    assert cli.main(["eval", classifier, *where]) == 0
    right = np.mean(logits.argmax(1) == np.arange(len(SIZES)) % 3)
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(right)
    probe = ["--probe", "knn", "--k", "1", "--train-split", "test"]  # each is its own neighbour
    assert cli.main(["eval", classifier, *where, *probe]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == 1


def test_what_needs_one_shape_is_refused(place, classifier, tmp_path, capsys):
    for command, said in (
        (
            ["embed", classifier, *paths(place), "--out", f"{tmp_path}/x", "--what", "tokens"],
            "take",
        ),
        (["tokens", classifier, *paths(place)], "not compared"),
    ):
        assert cli.main(command) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()

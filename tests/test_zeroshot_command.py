"""`vit-jax zeroshot` and `two_towers`, with a tiny model of random weights, against plain NumPy."""

import functools
import itertools
import json
import types

import jax
import numpy as np
import pytest
from image_helpers import encode
from recipes import GOLDEN, random_params

from vit_jax import cli, preprocess, two_towers
from vit_jax.checkpoint import io, names, recorded
from vit_jax.errors import UserError
from vit_jax.evaluate import zeroshot
from vit_jax.families import registry
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.text import Text
from vit_jax.models import from_config

SIZE, LENGTH, CLASSES = 32, 16, ("a_cat", "dog, hound", "House!", "un. truck", "cd player", "Uber")
VOCABULARY = GOLDEN / "lit/bert_vocab.txt"
TEXT = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "vocab_size": 177}


@functools.cache
def model_and_params():
    config = registry.resolve("LiT-B16B").config.to_dict()
    config |= registry.shrunk(config) | {"text": TEXT}
    config["image"]["transformer"]["num_layers"] = 1
    config["model_name"] = "LiT-tiny"
    params = random_params(
        names.expected_shapes(config, image_size=(SIZE, SIZE), num_classes=0), 0.3
    )
    # A temperature as of a trained model, so that probabilities are far from equal.
    return config, params | {"t": np.array([3.0], np.float32)}


def written(path, config, params, text):
    """A file that says everything of a tiny model."""
    images = Preprocess(SIZE, truncate=True)
    described = recorded.described("tiny", config, images, None, (SIZE, SIZE), text)
    metadata = {recorded.OURS: json.dumps(described)}
    io.save(path, {"params": params}, model=config, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    return written(path, *model_and_params(), Text("bert", str(VOCABULARY), LENGTH))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pixels of 30 images of six classes, and the folder of them."""
    folder = tmp_path_factory.mktemp("photos")
    rng, pixels = np.random.default_rng(0), {}
    for i in range(30):
        shape = rng.integers(20, 60, 2)
        colours = rng.integers(0, 256, (2, 2, 3))  # large patches, which a model tells apart
        image = np.kron(colours, np.ones((*shape // 2, 1))).astype(np.uint8)
        path = folder / "test" / CLASSES[i % 6] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
        pixels[str(path)] = image
    return folder, pixels


@functools.cache
def forward():
    config, params = model_and_params()
    model = from_config(config)
    return jax.jit(lambda **inputs: model.apply({"params": params}, **inputs))


def embedded(images=(), texts=()):
    """Unit vectors of images and texts, and the temperature, by the model alone."""
    pp = preprocess.get_pp(
        tokenizer_name="bert", vocab_path=str(VOCABULARY), max_len=LENGTH, size=SIZE
    )
    images = np.stack([pp({"image": image})["image"] for image in images])
    tokens = np.stack([pp({"text": text})["tokens"] for text in texts])
    zimg, ztxt, out = forward()(images=images, tokens=tokens)
    return np.asarray(zimg, np.float64), np.asarray(ztxt, np.float64), float(out["t"][0])


PLAIN = {  # what each evaluation makes of the classes, written out by hand
    "clip": list(CLASSES),
    "colab": list(CLASSES),
    "big_vision": ["a cat", "dog", "house", "un truck", "cd player", "uber"],
}


def plainly(photos, average):
    """Probabilities of images for classes, [30, 6], and labels, in NumPy."""
    _, pixels = photos
    prompts = zeroshot.PROMPTS["short"]()
    if average == "big_vision":
        prompts = [prompt.replace(".", "") for prompt in prompts]
    texts = [prompt.replace("{}", name) for name in PLAIN[average] for prompt in prompts]
    zimg, ztxt, t = embedded(pixels.values(), texts)
    classes = np.stack([ztxt[8 * i : 8 * i + 8].mean(0) for i in range(6)])
    if average in ("big_vision", "clip"):
        classes /= np.linalg.norm(classes, axis=1, keepdims=True) + 1e-8
    scores = np.exp(t * zimg @ classes.T)
    labels = [CLASSES.index(path.split("/")[-2]) for path in pixels]
    return scores / scores.sum(1, keepdims=True), np.array(labels)


@pytest.fixture
def run(capsys, weights):
    """Runs the command: (status, stdout, stderr)."""

    def run(*argv, command=("zeroshot", "--weights", weights)):
        capsys.readouterr()
        status = cli.main([str(a) for a in (*command, *argv)])
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("average", zeroshot.AVERAGES)
def test_accuracy_over_a_dataset_is_that_of_numpy(run, photos, average):
    how = ("--dataset", photos[0], "--prompts", "short", "--average", average, "--json")
    status, out, err = run(*how, "--batch", 30)
    assert status == 0, err
    found = json.loads(out)
    probabilities, labels = plainly(photos, average)
    order = np.argsort(-probabilities, axis=1)
    assert found["num_examples"] == 30
    assert found["top1"] == np.mean(order[:, 0] == labels)
    assert found["top5"] == np.mean((order[:, :5] == labels[:, None]).any(1))
    assert 0 < found["top1"] < found["top5"] < 1


def test_classes_of_images_are_those_of_numpy(run, photos, tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    files = list(photos[1])
    for average in zeroshot.AVERAGES:
        how = ("--classes", tmp_path / "classes.txt", "--prompts", "short", "--average", average)
        status, out, err = run(*how, "--top", 3, "--json", *files)
        assert status == 0, err
        probabilities, _ = plainly(photos, average)
        for row, path, wanted in zip(json.loads(out), files, probabilities, strict=True):
            assert row["image"] == path
            best = np.argsort(-wanted)[:3]
            assert [one["class"] for one in row["predictions"]] == best.tolist()
            assert [one["name"] for one in row["predictions"]] == [CLASSES[i] for i in best]
            given = [one["probability"] for one in row["predictions"]]
            np.testing.assert_allclose(given, wanted[best], rtol=2e-5)
    # The evaluations differ, so that none passes for another.
    found = [plainly(photos, average)[0] for average in zeroshot.AVERAGES]
    for one, other in itertools.combinations(found, 2):
        assert np.abs(one - other).max() > 1e-3


def test_a_damaged_image_has_a_line_without_a_class(run, photos, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    how = ("--classes", tmp_path / "classes.txt", "--prompts", "short", tmp_path / "no.png")
    status, out, err = run(*how, *photos[1])
    assert status == 0
    paths, classes, _ = zip(*(line.split("\t") for line in out.splitlines()), strict=True)
    assert paths == (str(tmp_path / "no.png"), *photos[1])
    best = plainly(photos, "big_vision")[0].argmax(1)
    assert classes == ("", *(CLASSES[i] for i in best))
    assert "1 of 31 images could not be read" in err
    assert run(*how, "--on-error", "raise")[0] == 2


def test_wordnet_ids_are_spelled_out():
    for given, wanted in [
        (["n01440764", "n02012849"], ["tench, Tinca tinca", "crane"]),
        (["n00004475", "n01440764"], ["organism, being", "tench, Tinca tinca"]),
        (["n01440764", "cat"], ["n01440764", "cat"]),
    ]:
        source = types.SimpleNamespace(num_classes=2, int2str=given.__getitem__)
        assert zeroshot.own_names(source) == wanted


@pytest.fixture(scope="module")
def captions(photos, tmp_path_factory):
    """A table of images with one to three captions each."""
    rng, words = np.random.default_rng(1), VOCABULARY.read_text("utf-8").split()[6:30]
    path = tmp_path_factory.mktemp("captions") / "captions.jsonl"
    found = {
        name: [" ".join(rng.choice(words, 4)) for _ in range((1, 1, 2, 3, 1)[i % 5])]
        for i, name in enumerate(photos[1])
    }
    path.write_text("".join(json.dumps({"path": p, "caption": c}) + "\n" for p, c in found.items()))
    return path, found


def test_recall_over_captions_is_that_of_numpy(run, photos, captions):
    path, found = captions
    status, out, err = run("--dataset", path, "--retrieval", "--json")
    assert status == 0, err
    texts = [text for several in found.values() for text in several]
    image_of = np.repeat(np.arange(30), [len(several) for several in found.values()])
    zimg, ztxt, _ = embedded(photos[1].values(), texts)
    order = np.argsort(-zimg @ ztxt.T, axis=1)
    wanted = {"num_images": 30, "num_texts": len(texts)}
    for k in (1, 5, 10):
        hits = [(image_of[row[:k]] == i).any() for i, row in enumerate(order)]
        wanted[f"image_to_text@{k}"] = np.mean(hits)
        best = np.argsort(-ztxt @ zimg.T, axis=1)[:, :k]
        wanted[f"text_to_image@{k}"] = np.mean((best == image_of[:, None]).any(1))
    assert json.loads(out) | wanted == json.loads(out)
    assert 0 < wanted["image_to_text@5"] < 1
    status, out, _ = run("--dataset", path, "--retrieval")
    assert f"{wanted['text_to_image@10']:.2%}" in out


def test_a_classifier_in_python(weights, photos):
    classifier = two_towers.load_two_towers(weights).zero_shot(
        CLASSES, zeroshot.PROMPTS["short"](), average="colab"
    )
    images = np.stack([classifier.read_image(path) for path in photos[1]])
    found = classifier.probabilities(images)
    np.testing.assert_allclose(found, plainly(photos, "colab")[0], rtol=2e-5)


def test_weights_that_name_no_vocabulary_take_one(tmp_path, weights):
    path = written(tmp_path / "x.npz", *model_and_params(), Text("bert"))
    with pytest.raises(UserError, match="--vocabulary"):
        two_towers.load_two_towers(path)
    lost = written(tmp_path / "lost.npz", *model_and_params(), Text("bert", "lost.txt"))
    with pytest.raises(UserError, match=r"vocabulary lost.txt: No such .*; --vocabulary FILE"):
        two_towers.load_two_towers(lost)
    towers = two_towers.load_two_towers(lost, vocabulary=str(VOCABULARY))
    assert towers.tokenizer(["a cat"]).shape == (1, LENGTH)
    larger = tmp_path / "vocab.txt"
    larger.write_bytes(VOCABULARY.read_bytes().rstrip() + b"\nmore\n")
    with pytest.raises(UserError, match="178 entries, and tiny knows 177"):
        two_towers.load_two_towers(weights, vocabulary=str(larger))


def test_bad_input_has_one_message(run, photos, captions, tmp_path):
    image = next(iter(photos[1]))
    (tmp_path / "prompts.txt").write_text("a photo\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "no.csv").write_text(f"path,caption\n{image},\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.png").write_bytes(encode(np.zeros((8, 8, 3), np.uint8)))
    cat = ("--classes", "cat,dog")
    for argv, message in [
        ((image,), "--classes"),
        (cat, "name the images"),
        (("--classes", "none.txt", image), "cannot read the classes 'none.txt'"),
        (("--classes", tmp_path / "empty.txt", image), "is empty"),
        ((*cat, "--prompts", tmp_path / "prompts.txt", image), "need a {}"),
        ((*cat, "--prompts", "clop", image), "cannot read the prompts 'clop'"),
        ((*cat, "--average", "mean", image), "unknown --average 'mean'"),
        (("--classes", "cat,?", image), "need names that are texts"),
        ((*cat, "--vocabulary", "none.txt", image), "cannot read the vocabulary none.txt"),
        ((*cat, "--vocabulary", tmp_path / "empty.txt", image), "is empty"),
        ((*cat, "--retrieval", image), "--retrieval needs a --dataset"),
        ((*cat, "--dataset", photos[0], image), "not both"),
        ((*cat, "--dataset", photos[0], "--output", "x.csv"), "--output is for images"),
        ((*cat, "--dataset", photos[0], "--on-error", "report"), "raise or skip"),
        ((*cat, "--dataset", captions[0], "--retrieval"), "--classes is for classes"),
        (("--dataset", tmp_path / "no.csv", "--retrieval"), "no.csv, line 2"),
        (("--dataset", folder, "--retrieval"), "have no captions"),
    ]:
        status, out, err = run(*argv)
        assert (status, out) == (2, ""), argv
        assert message in err, err
        assert err.startswith("vit-jax: error: ")
        assert err.count("\n") == 1
    status, _, err = run(*cat, image, command=["zeroshot"])
    assert status == 2
    assert "--weights FILE" in err


def test_a_model_of_one_tower_is_refused(run, tmp_path, photos):
    config = registry.resolve("ViT-B_16").config.to_dict()
    config |= registry.shrunk(config)
    shapes = names.expected_shapes(config, image_size=(SIZE, SIZE), num_classes=2)
    path = written(tmp_path / "vit.npz", config, random_params(shapes, 0.1), text=None)
    status, _, err = run(
        "--classes", "cat,dog", next(iter(photos[1])), command=["zeroshot", "--weights", path]
    )
    assert status == 2
    assert "takes images alone" in err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def sigmoid_weights(tmp_path_factory):
    """The same towers with a bias, as SigLIP's are."""
    config, params = model_and_params()
    config = config | {"bias_init": -10.0}
    params = params | {"t": np.array([1.5], np.float32), "b": np.array([1.0], np.float32)}
    path = tmp_path_factory.mktemp("sigmoid") / "tiny.npz"
    return written(path, config, params, Text("bert", str(VOCABULARY), LENGTH))


def test_with_a_bias_each_class_has_a_probability_of_its_own(run, weights, sigmoid_weights, photos):
    """And the command says which of the two it prints."""
    image, pixels = next(iter(photos[1].items()))
    how = ("--classes", "a_cat,House!,Uber", "--average", "colab", "--prompts", "short")
    how = (*how, "--top", 3, "--json", image)
    status, out, err = run(*how)
    assert status == 0, err
    assert "softmax" in err
    assert sum(p["probability"] for p in json.loads(out)[0]["predictions"]) == pytest.approx(1)
    status, out, err = run(*how, command=("zeroshot", "--weights", sigmoid_weights))
    assert status == 0, err
    assert "sigmoid" in err
    prompts = zeroshot.PROMPTS["short"]()
    names = ["a_cat", "House!", "Uber"]
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    zimg, ztxt, _ = embedded([pixels], texts)
    classes = np.stack([ztxt[8 * i : 8 * i + 8].mean(0) for i in range(3)])
    wanted = 1 / (1 + np.exp(-(np.exp(1.5) * zimg @ classes.T + 1.0)[0]))
    found = {p["name"]: p["probability"] for p in json.loads(out)[0]["predictions"]}
    np.testing.assert_allclose([found[name] for name in names], wanted, rtol=2e-5)
    assert abs(sum(wanted) - 1) > 0.1  # no softmax

"""Probes against scikit-learn, and on files and runs through the command line."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from vit_jax import cli, inference
from vit_jax.checkpoint.facts import Model
from vit_jax.configs import models as model_configs
from vit_jax.errors import UserError
from vit_jax.evaluate import features, fewshot
from vit_jax.evaluate.fewshot import Examples, RidgePath
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline.sources import FolderSource
from vit_jax.models import from_config
from vit_jax.tree import arrays


def blobs(n, dim, classes=3, seed=0, spread=2.0, dtype=np.float64) -> Examples:
    """Overlapping clouds of very different scales, so that the scaling matters."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.permutation(np.arange(n) % classes)
    x = centres[labels] + spread * rng.normal(size=(n, dim))
    x = x * np.logspace(-2, 2, dim) + 5.0
    return Examples(x.astype(dtype), labels, classes)


# --- linear probe --------------------------------------------------------------------------------


def sklearn_scores(train, queries, l2):
    """The same probe, by scikit-learn: scaled, a large constant column, targets of -1 and 1."""
    mean, std = train.features.mean(0), train.features.std(0) + 1e-5

    def columns(x):
        return np.column_stack([(x - mean) / std, np.full(len(x), 100.0)])

    targets = np.where(np.arange(train.num_classes) == train.labels[:, None], 1.0, -1.0)
    ridge = Ridge(alpha=l2, fit_intercept=False, solver="cholesky")
    return ridge.fit(columns(train.features), targets).predict(columns(queries))


@pytest.mark.parametrize(("n", "dim"), [(60, 7), (9, 40), (12, 11)])
@pytest.mark.parametrize("l2", [2.0**-3, 1.0, 2.0**10, 2.0**20])
def test_the_probe_is_ridge_regression(n, dim, l2):
    """With more examples than features, fewer, and as many (the bias counts)."""
    train, queries = blobs(n, dim), blobs(20, dim, seed=1).features
    got = RidgePath.fit(train).scores(queries, l2)
    np.testing.assert_allclose(got, sklearn_scores(train, queries, l2), rtol=1e-9, atol=1e-9)


def test_float32_features_lose_nothing_in_the_solution():
    train, queries = blobs(60, 7, dtype=np.float32), blobs(20, 7, seed=1).features
    wide = Examples(train.features.astype(np.float64), train.labels, 3)
    got, expected = (RidgePath.fit(x).scores(queries, 1.0) for x in (train, wide))
    np.testing.assert_array_equal(got, expected)


def test_l2_comes_from_cross_validation_on_the_training_examples():
    train, l2s = blobs(30, 40, spread=4.0), [2.0**-8, 2.0**2, 2.0**9, 2.0**14]
    ranks = np.array([np.sum(train.labels[:i] == train.labels[i]) for i in range(30)])
    correct = dict.fromkeys(l2s, 0)
    for fold in range(5):
        learn, held_out = ranks % 5 != fold, ranks % 5 == fold
        for l2 in l2s:
            scores = sklearn_scores(train[learn], train.features[held_out], l2)
            correct[l2] += (scores.argmax(-1) == train.labels[held_out]).sum()
    assert len(set(correct.values())) > 1
    assert correct[fewshot.choose_l2(train, l2s)] == max(correct.values())


def test_among_equals_the_middle_wins():
    apart = blobs(30, 3, spread=1e-3)
    assert fewshot.choose_l2(apart, [1.0, 2.0, 4.0]) == 2.0


def test_one_shot_leaves_nothing_to_hold_out():
    assert fewshot.choose_l2(blobs(3, 5)) == fewshot.DEFAULT_L2
    assert fewshot.choose_l2(blobs(3, 5), [1.0, 500.0, 1e5]) == 500.0


def test_linear_probe_reports_accuracy_on_the_test_examples():
    train, test = blobs(30, 6), blobs(50, 6, seed=1)
    result = fewshot.linear_probe(train, test, [8.0])
    scores = sklearn_scores(train, test.features, 8.0)
    assert result == {"l2": 8.0, "top1": np.mean(scores.argmax(-1) == test.labels)}
    assert 0.4 < result["top1"] < 1.0


@pytest.mark.parametrize("l2s", [[], [1.0, 0.0], [-1.0]])
def test_l2_must_be_positive(l2s):
    with pytest.raises(UserError, match="above 0"):
        fewshot.choose_l2(blobs(9, 3), l2s)


# --- nearest neighbours --------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (5, 0.5), (60, 1.0)])
def test_votes_are_those_of_scikit_learn(k, temperature, monkeypatch):
    train, queries = blobs(60, 8), blobs(33, 8, seed=1).features
    reference = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(train.features, train.labels)
    expected = reference.predict_proba(queries)
    for block in (2**26, 10 * 60, 1):  # all queries at once, ten, one
        monkeypatch.setattr(fewshot, "_BLOCK", block)
        votes = fewshot.knn_votes(train, queries, k, temperature)
        shares = votes / votes.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(shares, expected, rtol=1e-9, atol=1e-12)


def test_knn_accuracy():
    train, test = blobs(60, 8), blobs(40, 8, seed=1)
    expected = (fewshot.knn_votes(train, test.features).argmax(-1) == test.labels).mean()
    assert fewshot.knn(train, test) == expected
    assert fewshot.knn(train, train, k=1) == 1.0


@pytest.mark.parametrize("k", [0, 10])
def test_k_must_be_there(k):
    with pytest.raises(UserError, match="k="):
        fewshot.knn_votes(blobs(9, 3), np.ones((1, 3)), k)


# --- features, files, the command line -----------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three colours, ten training images each (red: two), four to test."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for name, colour in {"blue": 2, "green": 1, "red": 0}.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(2 if (split, name) == ("train", "red") else count):
                pixels = rng.integers(0, 120, (16, 16, 3))
                pixels[..., colour] += 100
                path = folder / split / name / f"{i}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module", params=["token", "gap", "scan"])
def weights(request):
    config = model_configs.get_testing_config().to_dict()
    config["classifier"] = "gap" if request.param == "gap" else "token"
    config["transformer"]["scan"] = request.param == "scan"
    model = from_config(config, num_classes=7)
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32), train=False)
    from vit_jax.checkpoint.stacked import unstack_blocks

    params = unstack_blocks(jax.device_get(variables["params"]))
    params["head"]["kernel"] = np.random.default_rng(0).normal(size=(10, 7)).astype(np.float32)
    known = Model("testing", config, 7, (16, 16), Preprocess(size=16), None)
    return inference.Weights(known, {"params": params, "batch_stats": {}})


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "model.npz"
    inference.save_weights(path, weights, "official")
    return path


def test_features_are_what_the_head_gets(weights, checkpoint):
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    model = features.FeatureModel.load(checkpoint)
    head = weights.params["head"]
    logits = inference.load_model(checkpoint).logits(images)
    np.testing.assert_allclose(
        model(images) @ head["kernel"] + head["bias"], logits, rtol=1e-5, atol=1e-5
    )


def test_a_file_without_a_head_will_do(weights, tmp_path):
    params = {k: v for k, v in weights.params.items() if k != "head"}
    assert "head/kernel" not in arrays(params)
    bare = dataclasses.replace(weights, variables={"params": params, "batch_stats": {}})
    images = np.ones((2, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(
        features.FeatureModel(bare)(images), features.FeatureModel(weights)(images)
    )


def test_shots_are_so_many_of_every_class_and_drawn_by_the_seed(folder):
    source = FolderSource(folder / "train")

    def names(seed, shots=3):
        subset = features.draw_shots(source, shots, seed)
        return [subset[i]["name"] for i in range(len(subset))]

    drawn = names(0)
    assert len(set(drawn)) == len(drawn)
    counts = [sum(f"/{c}/" in name for name in drawn) for c in ("blue", "green", "red")]
    assert counts == [3, 3, 2]  # there are but two red ones
    assert names(0) == drawn != names(1)
    assert [n for n in names(0, shots=2) if n not in drawn] == []


@pytest.mark.parametrize("probe", ["fewshot", "knn"])
def test_the_command_probes_a_dataset_of_other_classes(checkpoint, folder, probe, capsys):
    """The checkpoint tells 7 classes apart, the dataset has 3."""
    options = {"fewshot": ["--shots=2", "--l2=1,16"], "knn": ["--k=3"]}[probe]
    argv = ["eval", str(checkpoint), "--dataset", str(folder), "--probe", probe, *options]
    assert cli.main([*argv, "--batch=5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_examples"], result["num_train"]) == (12, {"fewshot": 6, "knn": 22}[probe])

    model = features.FeatureModel.load(checkpoint)

    def examples(source):
        records = [model.prepare(dict(source[i])) for i in range(len(source))]
        x = model(np.stack([r["image"] for r in records]))
        return Examples(x, np.array([r["label"] for r in records]), 3)

    train, test = FolderSource(folder / "train"), examples(FolderSource(folder / "test"))
    if probe == "knn":
        assert result["top1"] == fewshot.knn(examples(train), test, 3)
    else:
        shots = examples(features.draw_shots(train, 2, seed=0))
        expected = fewshot.linear_probe(shots, test, [1.0, 16.0])
        assert {name: result[name] for name in expected} == expected

    assert cli.main([*argv, "--batch=5"]) == 0
    assert f"{probe} on {len(shots) if probe == 'fewshot' else 22} ex" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k=3"], "--k goes with --probe knn"),
        (["--probe=fewshot", "--k=3"], "--k goes with --probe knn"),
        (["--probe=knn", "--shots=3"], "--shots goes with --probe fewshot"),
        (["--probe=knn", "--k=0"], "--k must be at least 1"),
        (["--probe=knn", "--k=23"], "k=23 neighbours of 22"),
        (["--probe=fewshot", "--l2=a"], "--l2=a; expected numbers"),
        (["--probe=fewshot", "--l2=0"], "above 0"),
        (["--probe=fewshot", "--shots=-1"], "at least 0"),
        (["--probe=fewshot", "--train-split=nope"], "nope"),
    ],
)
def test_bad_options(checkpoint, folder, capsys, options, message):
    argv = ["eval", str(checkpoint), "--dataset", str(folder), *options]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_several_labels_are_refused(checkpoint, folder, tmp_path, capsys):
    image = next((folder / "test").rglob("*.png"))
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"{image},a;b\n{image},a\n")
    argv = ["eval", str(checkpoint), "--dataset", str(tmp_path / "train.csv"), "--probe=knn"]
    assert cli.main(argv) == 2
    assert "a list of labels" in capsys.readouterr().err


# --- several labels, evaluated -------------------------------------------------------------------


def test_eval_counts_any_of_several_labels(checkpoint, folder, tmp_path, capsys):
    """As ImageNet-ReaL: any label is right, and images without labels do not count."""
    images = sorted((folder / "test").rglob("*.png"))
    loaded = inference.load_model(checkpoint)
    best = loaded.logits(np.stack([loaded.read_image(p) for p in images])).argmax(-1)
    rows = []
    for i, (image, right) in enumerate(zip(images, best, strict=True)):
        wrong = (right + 1) % 7
        rows.append(f"{image},{[f'{wrong};{right}', f'{wrong}', ''][i % 3]}")
    (tmp_path / "train.csv").write_text("\n".join(f"{images[0]},{c};0" for c in range(7)))
    (tmp_path / "test.csv").write_text("\n".join(rows))
    argv = [
        "eval",
        str(checkpoint),
        "--dataset",
        str(tmp_path / "train.csv"),
        "--json",
        "--split=test",
    ]
    assert cli.main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_examples"], result["top1"]) == (8, 0.5)

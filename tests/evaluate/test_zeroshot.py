"""Zero-shot classification and retrieval over given vectors, against plain NumPy."""

import hashlib
import json
import pathlib

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.evaluate import retrieval, zeroshot

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden/lit/zero_shot_golden.json").read_text()
)
BIG_VISION, COLAB = zeroshot.AVERAGES["big_vision"], zeroshot.AVERAGES["colab"]


def unit(seed, *shape):
    z = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def digest(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


# --- prompts -------------------------------------------------------------------------------------


def test_prompts_are_those_of_the_published_evaluations():
    for name, entry in [
        ("clip_and_name", "paper_templates"),
        ("clip", "colab_80_templates"),
        ("short", "best_templates"),
    ]:
        found = zeroshot.PROMPTS[name]()
        assert (len(found), digest(found)) == (GOLDEN[entry]["count"], GOLDEN[entry]["sha256"])
    clean = [zeroshot.canonical(t, keep="{}") for t in zeroshot.PROMPTS["clip_and_name"]()]
    assert digest(clean) == GOLDEN["paper_templates_canonical_sha256"]


def test_canonical_texts_are_big_visions():
    for case in GOLDEN["canonicalize"]:
        assert zeroshot.canonical(case["text"], case["keep"] or "") == case["result"], case


def test_texts_of_a_class_stand_together():
    names, templates = ["Maillot, one-piece suit", "T_shirt"], ["A {}!", "{} and {}"]
    assert zeroshot.class_texts(names, templates, BIG_VISION) == [
        "a maillot",
        "maillot and maillot",
        "a t shirt",
        "t shirt and t shirt",
    ]
    assert zeroshot.class_texts(names, templates[:1], COLAB) == [
        "A Maillot, one-piece suit!",
        "A T_shirt!",
    ]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["{}"], "needs classes and prompts; got 0 and 1"),
        (["cat"], [], "needs classes and prompts; got 1 and 0"),
        (["cat"], ["a {}", "a photo", "a { }"], r"without it: a photo, a \{ \}"),
        (["cat", "?!"], ["{}"], r"got '\?!'"),
    ],
)
def test_what_makes_no_texts_has_one_message(names, templates, message):
    with pytest.raises(UserError, match=message):
        zeroshot.class_texts(names, templates, BIG_VISION)


# --- classes -------------------------------------------------------------------------------------


def test_both_averages():
    ztxt = unit(0, 12, 8)
    mean = np.stack([ztxt[4 * i : 4 * i + 4].sum(0) / 4 for i in range(3)])
    colab = zeroshot.class_embeddings(ztxt, 3, COLAB)
    np.testing.assert_allclose(colab, mean, rtol=1e-6)
    ours = zeroshot.class_embeddings(ztxt, 3, BIG_VISION)
    np.testing.assert_allclose(ours, mean / np.linalg.norm(mean, axis=1)[:, None], rtol=1e-6)
    # They differ in more than length: an image may belong to another class.
    images = unit(1, 200, 8)
    assert (np.argmax(images @ colab.T, 1) != np.argmax(images @ ours.T, 1)).any()


# --- retrieval -----------------------------------------------------------------------------------


def by_sorting(queries, items, belongs):
    """The place of the first item that belongs, by sorting all items for each query."""
    places = []
    for i, query in enumerate(queries):
        order = np.argsort(-(items @ query), kind="stable")
        places.append(next(place for place, j in enumerate(order) if belongs(i, j)))
    return np.array(places)


@pytest.mark.parametrize("chunk", [1 << 24, 30 * 7, 1])
def test_recall_both_ways(chunk, monkeypatch):
    monkeypatch.setattr(retrieval, "_SCORES", chunk)
    rng = np.random.default_rng(3)
    image_of = rng.permutation([*range(20), *rng.integers(0, 20, 10)])
    # Rounded, so that sums are exact in any order, and many are equal.
    zimg, ztxt = np.rint(2 * rng.standard_normal((20, 3))), rng.standard_normal((30, 3))
    ztxt = np.rint(2 * ztxt + zimg[image_of]).astype(np.float32)
    zimg = zimg.astype(np.float32)
    to_text = by_sorting(zimg, ztxt, lambda i, j: image_of[j] == i)
    to_image = by_sorting(ztxt, zimg, lambda i, j: image_of[i] == j)
    wanted = {f"image_to_text@{k}": (to_text < k).mean() for k in (1, 5, 10)}
    wanted |= {f"text_to_image@{k}": (to_image < k).mean() for k in (1, 5, 10)}
    assert retrieval.recall(zimg, ztxt, image_of) == wanted
    assert 0 < wanted["image_to_text@1"] < wanted["image_to_text@5"] < 1


def test_a_model_that_tells_nothing_apart_finds_nothing():
    same, count = np.ones((50, 4), np.float32), np.arange(50)
    assert retrieval.recall(same, same, count, ks=[1, 10]) == {
        "image_to_text@1": 1 / 50,
        "image_to_text@10": 10 / 50,
        "text_to_image@1": 1 / 50,
        "text_to_image@10": 10 / 50,
    }


def test_what_cannot_be_ranked_has_one_message():
    z = unit(0, 3, 4)
    with pytest.raises(UserError, match="1 of 3 have none, the first is number 1"):
        retrieval.recall(z, z, [0, 2, 2])
    with pytest.raises(UserError, match="NaN or infinite"):
        retrieval.recall(np.full_like(z, np.nan), z, [0, 1, 2])

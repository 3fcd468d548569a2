"""`vit-jax embed --what text`: the vectors of texts, and of the images of the same space."""

import embedding
import numpy as np
import pytest
from recipes import GOLDEN

import vit_jax
from vit_jax import cli
from vit_jax.evaluate.embeddings.table import Embeddings
from vit_jax.families.text import Text

VOCABULARY = str(GOLDEN / "lit/bert_vocab.txt")
TEXTS = ["a cat", "a dog and a cat", "a cat", "", "a photo of a bird", "a dog"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A file of two tiny towers with random weights."""
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "vocab_size": 177}
    path = tmp_path_factory.mktemp("towers") / "towers.npz"
    texts = Text("bert", VOCABULARY, 8)
    return embedding.write_model(path, "LiT-B16B", texts=texts, text=sizes)


def embed(*words):
    return cli.main(["embed", "--batch=1", "--shard-size=4", *map(str, words)])


def test_each_line_has_the_vector_of_its_text(towers, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    lines, out = tmp_path / "texts.txt", tmp_path / "out"
    assert embed(towers, lines, f"--out={out}", "--what=text") == 0
    rows = Embeddings.open(out).read("text")
    assert rows.keys == [text for text in TEXTS if text]
    wanted = vit_jax.load(towers).texts(rows.keys)
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2
    np.testing.assert_allclose(rows.vectors["text"], wanted, atol=1e-5)
    embedding.write_images(tmp_path / "images", 3)
    images = tmp_path / "image vectors"
    assert embed(towers, tmp_path / "images", f"--out={images}") == 0
    found = Embeddings.open(images).read()
    wanted = vit_jax.load(towers).features(found.keys)
    np.testing.assert_allclose(found.vectors["features"], wanted, atol=1e-5)
    capsys.readouterr()
    for words, message in (
        ((towers, lines, "--what=features,text"), "stands alone"),
        ((towers, tmp_path / "no.txt", "--what=text"), "no file of texts"),
        ((towers, lines, "--what=text", "--vocabulary=no.txt"), "no.txt"),
    ):
        assert embed(*words, f"--out={tmp_path / 'other'}") == 2
        assert message in capsys.readouterr().err

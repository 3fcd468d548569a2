"""Tokenizers against the ids that TensorFlow Text gives, and what is no vocabulary."""

import json
import pathlib
import sys

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.families.text import Text
from vit_jax.text import get_tokenizer
from vit_jax.text.word_pieces import words

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/lit"
KINDS = {
    "bert": ("bert_vocab.txt", "bert_tokens.json"),
    "sentencepiece": ("sp_tiny.model", "sp_tiny_tokens.json"),
}


def tokenizer(kind, length=16):
    return get_tokenizer(Text(kind, str(GOLDEN / KINDS[kind][0]), length))


def cases(kind):
    return json.loads((GOLDEN / KINDS[kind][1]).read_text())["cases"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_tensorflow_text(kind):
    recorded = cases(kind)
    rows = tokenizer(kind)([case["text"] for case in recorded])
    assert rows.dtype == np.int32
    for case, row in zip(recorded, rows.tolist(), strict=True):
        assert row == case["ids16"], case["text"]


def test_words_and_all_pieces_are_those_of_tensorflow_text():
    encode = tokenizer("bert").pieces.encode
    for case in cases("bert"):
        assert words(case["text"]) == case["words"]
        assert encode(case["text"]) == case["pieces"]


@pytest.mark.parametrize("length", [2, 3, 64])
def test_a_text_is_cut_or_filled_up_to_any_length(length):
    for kind, ids, fill in [
        ("bert", lambda case: [2, *case["pieces"]], 0),
        # The last place is kept for </s>.
        ("sentencepiece", lambda case: case["ids"][:-1][: length - 1], 1),
    ]:
        recorded = cases(kind)
        rows = tokenizer(kind, length)([case["text"] for case in recorded])
        for case, row in zip(recorded, rows.tolist(), strict=True):
            wanted = ids(case)[:length]
            assert row == wanted + [fill] * (length - len(wanted))
        assert tokenizer(kind, length)([]).shape == (0, length)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("bert", None, "cannot read the vocabulary"),
        ("bert", b"\n \n", "is empty"),
        ("bert", b"[UNK]\na\n", r"of its 2 lines none is \[CLS\]"),
        ("bert", b"[CLS]\n[UNK]\na\na\n", "has lines twice: a"),
        ("bert", b"[CLS]\n[UNK]\n\xff\n", "UTF-8"),
        ("sentencepiece", b"", "is empty"),
        ("sentencepiece", b"[CLS]\n[UNK]\n", "no SentencePiece model"),
        ("sentencepiece", (GOLDEN / "sp_tiny.model").read_bytes()[:9000], "no SentencePiece model"),
        ("clips", b"a", "unknown tokenizer 'clips'"),
    ],
)
def test_what_is_no_vocabulary_has_one_message(tmp_path, kind, content, message):
    path = tmp_path / "vocabulary"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        get_tokenizer(Text(kind, str(path)))


def test_what_is_no_text_has_one_message(monkeypatch):
    make = tokenizer("bert")
    for texts, message in [
        ("a cat", "expected a list of texts"),
        (["a cat", b"a dog"], "expected texts, got bytes"),
        (["a \ud800 cat"], "no valid Unicode"),
    ]:
        with pytest.raises(UserError, match=message):
            make(texts)
    with pytest.raises(UserError, match="--vocabulary"):
        get_tokenizer(Text("bert"))
    with pytest.raises(UserError, match="at least 2 tokens"):
        tokenizer("sentencepiece", length=1)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"vit-jax\[text\]"):
        tokenizer("sentencepiece")


def test_lines_of_windows_and_ids_by_line(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join(["x", "[UNK]", "cat", "[CLS]", "\u2028"]).encode())
    rows = get_tokenizer(Text("bert", str(path), 4))(["a Cat", "\u2028"])
    assert rows.tolist() == [[3, 1, 2, 0], [3, 4, 0, 0]]


def test_without_an_unknown_piece_the_number_behind_the_last_stands_for_it(tmp_path):
    """As in the original's own test of its tokenizer."""
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[CLS]\nsome\ntest\nwords")
    rows = get_tokenizer(Text("bert", str(path), 3))(["some", "test", "words", "xxx"])
    assert rows.tolist() == [[1, 2, 0], [1, 3, 0], [1, 4, 0], [1, 5, 0]]

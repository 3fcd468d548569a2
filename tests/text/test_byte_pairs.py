"""CLIP's byte pairs against transformers' tokenizer, on a small vocabulary that is made here."""

import gzip
import json
import sys

import numpy as np
import pytest
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vit_jax.errors import UserError
from vit_jax.families.text import Text
from vit_jax.text import byte_pairs, get_tokenizer

PAIRS = [
    ("c", "a"), ("ca", "t</w>"), ("a", "n"), ("t", "h"), ("th", "e</w>"), ("d", "o"),
    ("do", "g</w>"), ("Ã", "©</w>"), ("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>"),
    ("'", "s</w>"), ("ð", "Ł"), ("!", "!"), ("e", "n"), ("i", "n"), ("in", "g</w>"),
]  # fmt: skip
HARD = [
    "",
    " ",
    "a photo of a CAT",
    "The  dog's\tphoto\n, in 2024!!!",
    "we're they'll I'd ISN'T",
    "ÉCOLE é cafe\u0301 ﬁ ① Ⅷ",
    "😀 👩‍👩‍👧 🐈‍⬛ 日本語 नमस्ते עברית",
    "<|endoftext|> a cat <|startoftext|>",
    "<|EndOfText|>a</w>",
    "\u200b zero\u00a0width\u2028line",
    "&amp; ftfy â€œquotesâ€\x9d",
    "cat " * 60,
    "x" * 300,
    "12345 3.14 1e-5",
    "\x00 \x7f control",
]


@pytest.fixture(scope="module")
def merges():
    return "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in PAIRS)


@pytest.fixture(scope="module")
def entries(merges):
    """As in OpenAI's file: bytes, bytes that end words, merges, ends."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in PAIRS)]
    return {x: i for i, x in enumerate([*tokens, byte_pairs.BEGIN, byte_pairs.END])}


@pytest.fixture(scope="module")
def theirs(entries):
    return transformers.CLIPTokenizer(vocab=entries, merges=PAIRS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, theirs, entries, merges):
    """A folder of transformers, and the same vocabulary in the other two ways."""
    root = tmp_path_factory.mktemp("clip")
    theirs.save_pretrained(root / "whole")
    (root / "parts").mkdir()
    (root / "parts/vocab.json").write_text(json.dumps(entries))
    (root / "parts/merges.txt").write_text(merges)
    (root / "openai.txt.gz").write_bytes(gzip.compress(merges.encode()))
    return root


def rows(location, length=77):
    return get_tokenizer(Text("clip", str(location), length))(HARD)


def wanted(theirs, length=77):
    how = {"padding": "max_length", "truncation": True, "max_length": length}
    return np.array(theirs(HARD, **how)["input_ids"])


@pytest.mark.parametrize("where", ["whole", "whole/tokenizer.json", "parts", "parts/vocab.json"])
@pytest.mark.parametrize("length", [8, 77])
def test_ids_are_those_of_transformers(folder, theirs, where, length):
    np.testing.assert_array_equal(rows(folder / where, length), wanted(theirs, length))


def test_the_texts_tell_formulas_apart(theirs, entries):
    """What is left out of the rules changes some ids, so that equal ids mean equal rules."""
    ids = {text: theirs(text)["input_ids"] for text in HARD}
    assert ids["a photo of a CAT"] == theirs("a photo of a cat")["input_ids"]
    assert entries[byte_pairs.END] in ids["<|endoftext|> a cat <|startoftext|>"][1:-1]
    assert len(ids["cat " * 60]) == 62


def test_openais_merges_make_the_same_vocabulary_filled_up_with_zeros(folder, theirs, entries):
    ours, same = rows(folder / "openai.txt.gz"), wanted(theirs)
    end = entries[byte_pairs.END]
    for row, other in zip(ours.tolist(), same.tolist(), strict=True):
        # After the end of the text transformers goes on with ends, and OpenAI with zeros.
        length = len(other) - next(i for i, x in enumerate(reversed(other)) if x != end) + 1
        assert row == other[:length] + [0] * (len(other) - length)


def test_openais_vocabulary_has_its_49408_entries(tmp_path):
    """Its file has more merges than that."""
    letters = list(bytes_to_unicode().values())
    pairs = [f"{a} {b}" for a in letters for b in letters]
    assert len(pairs) > 60_000
    (tmp_path / "bpe.txt").write_text("#version: 0.2\n" + "\n".join(pairs))
    pieces = get_tokenizer(Text("clip", str(tmp_path / "bpe.txt"), 77)).pieces
    assert (pieces.size, pieces.first, pieces.last) == (49_408, (49_406,), (49_407,))


def test_the_file_beside_says_what_fills_texts_up(folder, entries):
    path = folder / "parts/tokenizer_config.json"
    for token in ("!", {"content": "!"}):
        path.write_text(json.dumps({"pad_token": token}))
        assert rows(folder / "parts")[0].tolist()[2:] == [entries["!"]] * 75
    path.unlink()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "tokenizer.json",
            b'{"model": {"type": "BPE"}}',
            "no vocabulary of CLIP, or it is damaged",
        ),
        ("vocab.json", b'{"a": 0}', "merges.txt"),
        ("merges.txt", b"#version\na b c\n", "no pair"),
        ("bpe.txt.gz", b"\x1f\x8bdamaged", "damaged"),
        ("bpe.txt", b"\xff\xfe", "damaged"),
    ],
)
def test_what_is_no_vocabulary_has_one_message(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        rows(tmp_path / name)


def test_what_lacks_the_ends_of_texts_or_the_package(tmp_path, folder, monkeypatch):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match="startoftext"):
        rows(tmp_path)
    with pytest.raises(UserError, match="holds no vocabulary of CLIP"):
        rows(folder)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"vit-jax\[text\]"):
        rows(folder / "parts")

"""SigLIP's tokenizers against transformers', with vocabularies that are trained here."""

import json

import pytest
import transformers
from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor
from vocabularies import OPTIONS, theirs, trained

from vit_jax.errors import UserError
from vit_jax.families.text import Text
from vit_jax.text import get_tokenizer

LENGTH = 16
HARD = [
    "",
    "   ",
    "a photo of a cat",
    "A PHOTO of a Cat!!!",
    "🙂 emoji ☕",
    "x" * 300,
    "cats and dogs " * 20,
    "a,b.c",
    "café naïve Straße İ ΟΔΟΣ",
    "▁a▁b",
    " \n\t a\tb ",
    "don't-stop",
    "  two  dogs",
    "你好",
    "<s> [CLS] <extra_id_0>",
]
ENDLESS = '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}'
# A text may hold what the vocabulary calls its special pieces.
SPECIAL = {
    "siglip": ["</s>", "a </s> cat", "<unk> dog", "dog</s>", " </s>a", "</s></s> a", "</S> a"],
    "siglip2": ["<eos>", "a <eos> cat", "<unk> dog", "dog<eos>", "<mask> a<pad>b", "<EOS> <bos>"],
}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    return {kind: trained(folder / kind, **options) for kind, options in OPTIONS.items()}


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize("kind", SPECIAL)
def test_ids_are_those_of_transformers(kind, vocabularies):
    texts = HARD + SPECIAL[kind]
    tokenize = theirs(kind, vocabularies[kind])
    wanted = tokenize(texts, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    ours = get_tokenizer(Text(kind, vocabularies[kind], LENGTH))
    for text, row, ids in zip(texts, ours(texts).tolist(), wanted, strict=True):
        assert row == ids, text
    # A text that is cut keeps its end, and one that is short is filled up with the right piece.
    long, short = ours(["x" * 300, "a"]).tolist()
    assert long[-1] == 1
    assert short[-1] == {"siglip": 1, "siglip2": 0}[kind]
    assert ours.pieces.size == {"siglip": 60, "siglip2": 330}[kind]


@pytest.mark.filterwarnings("ignore:This sequence already has")
def test_a_tokenizer_json_gives_the_same_ids(vocabularies, tmp_path):
    """Of SigLIP 2 as transformers saves it, and as Gemma's, which says nothing of small letters."""
    tokenize = theirs("siglip2", vocabularies["siglip2"])
    tokenize.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["normalizer"] = saved["normalizer"]["normalizers"][1]
    (tmp_path / "gemma.json").write_text(json.dumps(saved))
    texts = HARD + SPECIAL["siglip2"]
    wanted = tokenize(texts, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    for name in ("tokenizer.json", "gemma.json"):
        ours = get_tokenizer(Text("siglip2", str(tmp_path / name), LENGTH))
        for text, row, ids in zip(texts, ours(texts).tolist(), wanted, strict=True):
            assert row == ids, (name, text)
        assert ours.pieces.size == 330


def test_pieces_of_t5_give_the_same_ids(vocabularies, tmp_path):
    """As open_clip keeps SigLIP's; of plain texts they are those of the SentencePiece model."""
    _, scores, _ = SentencePieceExtractor(vocabularies["siglip"]).extract()
    transformers.T5Tokenizer(vocab=scores, extra_ids=3).save_pretrained(tmp_path)
    pieces, whole = (
        get_tokenizer(Text("siglip", path, LENGTH))
        for path in (vocabularies["siglip"], str(tmp_path / "tokenizer.json"))
    )
    plain = [text for text in HARD if not {"▁", "_"} & set(text)]
    for text, row, ids in zip(plain, whole(plain).tolist(), pieces(plain).tolist(), strict=True):
        assert row == ids, text
    assert whole(["a_cat"]).tolist() == pieces(["a cat"]).tolist() != pieces(["a_cat"]).tolist()
    assert whole.pieces.size == pieces.pieces.size == 60


@pytest.mark.parametrize(("kind", "other"), [("siglip", "sentencepiece"), ("siglip2", "siglip")])
def test_another_models_rules_give_other_ids(kind, other, vocabularies):
    make, wrong = (get_tokenizer(Text(k, vocabularies[kind], LENGTH)) for k in (kind, other))
    assert make(["A Cat!"]).tolist() != wrong(["A Cat!"]).tolist()


def test_a_vocabulary_without_what_a_text_needs(vocabularies, tmp_path):
    path = trained(tmp_path / "endless.model", vocab_size=60, eos_id=-1)
    for kind in ("siglip", "siglip2", "sentencepiece"):
        with pytest.raises(UserError, match="which a text needs"):
            get_tokenizer(Text(kind, path))
    for content, message in (("{}", "is no tokenizer.json"), (ENDLESS, "has no </s>")):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match=message):
            get_tokenizer(Text("siglip", str(tmp_path / "tokenizer.json")))

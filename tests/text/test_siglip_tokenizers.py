"""SigLIP's tokenizers against transformers', with vocabularies that are trained here."""

import io

import pytest
import sentencepiece
import transformers
from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor

from vit_jax.errors import UserError
from vit_jax.families.text import Text
from vit_jax.text import get_tokenizer

LENGTH = 16
CORPUS = [
    "a photo of a cat",
    "two dogs, running!",
    "The quick brown fox jumps over the lazy dog.",
    "stop hello world " + " ".join("abcdefghijklmnopqrstuvwxyz0123456789.,!"),
]
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
# A text may hold what the vocabulary calls its special pieces.
SPECIAL = {
    "siglip": ["</s>", "a </s> cat", "<unk> dog", "dog</s>", " </s>a", "</s></s> a", "</S> a"],
    "siglip2": ["<eos>", "a <eos> cat", "<unk> dog", "dog<eos>", "<mask> a<pad>b", "<EOS> <bos>"],
}


def trained(path, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 50), model_writer=model, minloglevel=2, **options
    )
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    return {
        "siglip": trained(
            folder / "spiece.model", vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1
        ),
        # As Gemma's: pairs of bytes, texts as they are.
        "siglip2": trained(
            folder / "tokenizer.model",
            vocab_size=330,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=["<mask>"],
            **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
            **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"},
        ),
    }


def theirs(kind, path):
    """transformers' tokenizer; SigLIP 2's with the settings of its published files."""
    if kind == "siglip":
        return transformers.SiglipTokenizer(path)
    vocabulary, *_, merges = SentencePieceExtractor(path).extract()
    return transformers.Siglip2Tokenizer(
        vocab=vocabulary, merges=merges, add_eos_token=True, padding_side="right"
    )


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


@pytest.mark.parametrize(("kind", "other"), [("siglip", "sentencepiece"), ("siglip2", "siglip")])
def test_another_models_rules_give_other_ids(kind, other, vocabularies):
    make, wrong = (get_tokenizer(Text(k, vocabularies[kind], LENGTH)) for k in (kind, other))
    assert make(["A Cat!"]).tolist() != wrong(["A Cat!"]).tolist()


def test_a_vocabulary_without_what_a_text_needs(vocabularies, tmp_path):
    path = trained(tmp_path / "endless.model", vocab_size=60, eos_id=-1)
    for kind in ("siglip", "siglip2", "sentencepiece"):
        with pytest.raises(UserError, match="which a text needs"):
            get_tokenizer(Text(kind, path))

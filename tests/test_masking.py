"""Secrets in commands, addresses and configs."""

import pytest

from vit_jax.masking import masked_config, masked_words

HF = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config.batch=8", "--workdir=/runs/a"], None),
        (["--hf-token=abc"], ["--hf-token=***"]),
        (["--api_key", "abc", "--smoke"], ["--api_key", "***", "--smoke"]),
        (["--token", "--smoke"], None),
        (["--set", "data.password=abc"], ["--set", "data.password=***"]),
        (["WANDB_API_KEY=abc"], ["WANDB_API_KEY=***"]),
        (["--config.model.classifier=token"], None),
        (["--config.cls_token=True"], None),
        (["--config.model.key_bias=True"], None),
        (["--config.pretrained=https://me:pw@host/b.npz"], ["--config.pretrained=https://***@host/b.npz"]),
        (["https://host/b?X-Amz-Signature=ab&part=2"], ["https://host/b?X-Amz-Signature=***&part=2"]),
        (["https://host/b@main/x?v=1"], None),
        (["--note=" + HF], ["--note=***"]),
        (["AKIA" + "A1" * 8, "ghp_" + "a" * 36], ["***", "***"]),
        (["monkey=banana", "tokenizer=conv"], None),
    ],
    ids=str,
)  # fmt: skip
def test_words(words, expected):
    assert masked_words(words) == (words if expected is None else expected)


def test_a_config_keeps_its_types():
    config = {
        "rules": ((".*/key/kernel", 1.0),),
        "data": {"token": "abc", "num_tokens": 4, "url": f"https://h/?token=x&y=1#{HF}"},
        "key": None,
    }
    assert masked_config(config) == {
        "rules": ((".*/key/kernel", 1.0),),
        "data": {"token": "***", "num_tokens": 4, "url": "https://h/?token=***&y=1#***"},
        "key": None,
    }

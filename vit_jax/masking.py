"""Hides secrets in what is written about a run: passwords, keys and tokens become `***`.

Secrets belong in the environment, where nothing here reads them. This is for those that stand in a
command or a config all the same.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"

# The last word of an option's or a field's name that holds a secret: `--hf-token`, `api_key`.
_NAME = re.compile(
    r"(?:.*[._-])?(?:api|access|secret|private)?[_-]?"
    r"(?:tokens?|secrets?|password|passwd|passphrase|credentials?|keys?|auth|pat|signature|sig)",
    re.IGNORECASE,
)
# The user's part of an address, `https://name:password@host/`.
_USER = re.compile(r"(?<=://)[^/\s?#@]+(?=@)")
# A parameter of an address, such as `?X-Amz-Signature=`; its name is judged by `_NAME`.
_PARAMETER = re.compile(r"(?<=[?&;])([^=&;\s#?]+)=([^&;\s#]+)")
# Tokens that can be told by their form: Hugging Face's, GitHub's, OpenAI's, AWS's and JSON's.
_TOKEN = re.compile(
    r"\b(?:hf_\w{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|sk-[\w-]{16,}|(?:AKIA|ASIA)[A-Z\d]{16}"
    r"|eyJ[\w-]+\.[\w-]+\.[\w-]*)"
)
_HARMLESS = ("", "True", "False", "None", "true", "false", "null")


def masked_text(text: str) -> str:
    """The text without the secrets that addresses in it hold, and without well-known tokens."""

    def parameter(match: re.Match[str]) -> str:
        return f"{match[1]}={_value(match[1], match[2])}"

    return _TOKEN.sub(MASK, _PARAMETER.sub(parameter, _USER.sub(MASK, text)))


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command line; the value of an option whose name is a secret's is masked too.

    A value may follow its option after `=` or as a word of its own.
    """
    found, option = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if equals and re.fullmatch(r"[\w.-]+", name):
            found.append(f"{name}={_value(name, value)}")
        else:
            found.append(_value(option, word))
        option = word if word.startswith("-") and not equals else ""
    return found


def masked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested config in which texts are masked by the names of their fields."""

    def masked(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return masked_config(value)
        if isinstance(value, (list, tuple)):
            return type(value)(masked(name, x) for x in value)
        return _value(name, value) if isinstance(value, str) else value

    return {name: masked(name, value) for name, value in config.items()}


def _value(name: str, value: str) -> str:
    secret = _NAME.fullmatch(name.lstrip("-")) and value not in _HARMLESS
    # An option in the place of a value is no value.
    return MASK if secret and not value.startswith("--") else masked_text(value)

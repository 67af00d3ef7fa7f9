"""Prompts are texts: they pass by the parser, which would find YAML in ``style: a circle``, ``#1 car`` and ``null``.

On a command line and in its YAML files a prompt becomes hexadecimal digits between two marks, until all is parsed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader

LOADER = "yaml with texts"  # what is called a parser mode
_TEXTS = {"prompt", "prompts", "source_prompt", "negative_prompt", "inversion_prompt"}
_FLAG = re.compile(r"--[A-Za-z][\w.-]*\+?(=.*)?", re.DOTALL)
_HIDDEN = re.compile("\ue000([0-9a-f]*)\ue001")  # characters that Unicode leaves to private use
_CODEC = ("utf-8", "surrogatepass")


def hide_words(words: Sequence[str]) -> list[str]:
    """Hide the prompts among words; after a prompt's flag whatever does not look like a flag is its text.

    A list of texts in JSON stays several prompts, and ``--inversion-prompt null`` stays YAML's null.
    """
    hidden: list[str] = []
    waits = False
    for word in words:
        flag, equals, value = word.partition("=")
        if waits and not _FLAG.fullmatch(word):
            flag, equals, value = hidden.pop(), "=", word
        name = flag.rpartition(".")[2].lstrip("-").rstrip("+").replace("-", "_")
        is_text = flag.startswith("--") and name in _TEXTS
        waits = is_text and not equals
        hidden.append(f"{flag}={_hide_value(name, value)}" if is_text and equals else word)
    return hidden


def hide(value: Any) -> Any:
    """Hide the texts in what a YAML file says or what was parsed, by the names of their options."""
    return _change(value, lambda name, text: _hide(text) if name.rstrip("+") in _TEXTS else text)


def reveal(value: Any) -> Any:
    """Put the texts back, wherever they are in what was parsed or in a message about it."""
    return _change(value, lambda _, text: _HIDDEN.sub(lambda found: bytes.fromhex(found[1]).decode(*_CODEC), text))


def reveal_yaml(text: str) -> str:
    """Put the texts back into YAML, in quotes."""
    style: dict[str, Any] = {"default_style": '"', "allow_unicode": True, "width": sys.maxsize}
    return _HIDDEN.sub(lambda found: str(yaml.safe_dump(reveal(found[0]), **style)).rstrip("\n"), text)


def _hide(text: str) -> str:
    return text if _HIDDEN.fullmatch(text) else f"\ue000{text.encode(*_CODEC).hex()}\ue001"


def _hide_value(name: str, value: str) -> str:
    try:
        texts = json.loads(value) if name == "prompts" else None
    except (ValueError, RecursionError):
        texts = None
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return json.dumps([_hide(text) for text in texts], ensure_ascii=False)
    return value if (name, value) == ("inversion_prompt", "null") else _hide(value)


def _change(value: Any, change: Callable[[str, str], str], name: str = "") -> Any:
    """Change the strings in nested values; each is told with the name of the option that holds it."""
    if isinstance(value, str):
        return change(name, value)
    if isinstance(value, Namespace):
        vars(value).update({key: _change(one, change, key) for key, one in vars(value).items()})
        return value
    if isinstance(value, dict):
        return {key: _change(one, change, str(key)) for key, one in value.items()}
    return [_change(one, change, name) for one in value] if isinstance(value, list) else value


set_loader(LOADER, lambda text: hide(get_loader("yaml")(text)), (yaml.YAMLError,))

"""Prompts are texts: they pass by the parser, which would find YAML in ``style: a circle``, ``#1 car`` and ``null``.

On a command line and in the YAML files it names, a prompt is written as hexadecimal digits between two marks, which no
parser takes for anything, and put back into what was parsed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader

LOADER = "yaml with texts"
"""Name of the way to read configs, for ``parser_mode``."""
_TEXTS = {"prompt", "prompts", "source_prompt", "negative_prompt", "inversion_prompt"}
_FLAG = re.compile(r"--[A-Za-z][\w.-]*\+?(=.*)?", re.DOTALL)
_HIDDEN = re.compile("\ue000([0-9a-f]*)\ue001")  # characters that Unicode leaves to private use


def hide_words(words: Sequence[str]) -> list[str]:
    """Hide the prompts among words; the value of a prompt's flag joins it by ``=``.

    A list of texts in JSON stays several prompts, and ``--inversion-prompt null`` stays YAML's null. After the flag of
    a prompt whatever does not look like a flag is its text.
    """
    hidden: list[str] = []
    open_flag = False
    for word in words:
        flag, equals, value = word.partition("=")
        if open_flag and not _FLAG.fullmatch(word):
            flag, value, equals = hidden.pop(), word, "="
        is_text = flag.startswith("--") and _get_name(flag) in _TEXTS
        hidden.append(f"{flag}={_hide_value(_get_name(flag), value)}" if is_text and equals else word)
        open_flag = is_text and not equals
    return hidden


def hide(value: Any, name: str = "") -> Any:
    """Hide the texts in what a YAML file says or was parsed, by the names of their options."""
    if isinstance(value, Namespace):
        vars(value).update({key: hide(one, key) for key, one in vars(value).items()})
        return value
    if isinstance(value, dict):
        return {key: hide(one, str(key).rstrip("+")) for key, one in value.items()}
    if isinstance(value, list):
        return [hide(one, name) for one in value]
    return _hide(value) if isinstance(value, str) and name in _TEXTS else value


def reveal(value: Any) -> Any:
    """Put the texts back, wherever they are in what was parsed or in a message about it."""
    if isinstance(value, str):
        return _HIDDEN.sub(lambda found: bytes.fromhex(found[1]).decode("utf-8", "surrogatepass"), value)
    if isinstance(value, Namespace):
        vars(value).update({name: reveal(one) for name, one in vars(value).items()})
        return value
    if isinstance(value, dict):
        return {name: reveal(one) for name, one in value.items()}
    return type(value)(map(reveal, value)) if type(value) in (list, tuple) else value


def reveal_yaml(text: str) -> str:
    """Put the texts back into YAML, in quotes."""
    quote = partial(yaml.safe_dump, default_style='"', allow_unicode=True, width=sys.maxsize)
    return _HIDDEN.sub(lambda found: quote(reveal(found[0])).rstrip("\n"), text)


def _get_name(flag: str) -> str:
    return flag.rpartition(".")[2].lstrip("-").rstrip("+").replace("-", "_")


def _hide_value(name: str, value: str) -> str:
    if name == "inversion_prompt" and value == "null":
        return value
    try:
        listed = json.loads(value) if name == "prompts" else None
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
        return json.dumps([_hide(one) for one in listed], ensure_ascii=False)
    return _hide(value)


def _hide(text: str) -> str:
    return text if _HIDDEN.fullmatch(text) else f"\ue000{text.encode('utf-8', 'surrogatepass').hex()}\ue001"


set_loader(LOADER, lambda text: hide(get_loader("yaml")(text)), (yaml.YAMLError,))

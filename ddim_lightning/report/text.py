"""Texts from outside are made fit to be shown: names, prompts and reasons cannot steer a terminal or break a file."""

from __future__ import annotations

import json
import re
from typing import Any

_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, what changes the direction of writing, and halves of characters."""
_HALVES = re.compile("[\ud800-\udfff]")


def make_plain(text: str) -> str:
    r"""Return a text of one line, with escapes such as ``\x1b`` for what would steer a terminal.

    Args:
        text: Any text. A byte of a file name that is not UTF-8, which Python holds as half a character, becomes
            ``\xe9``, and half an emoji from JSON ``\ud83d``.
    """
    return _UNSHOWABLE.sub(_escape, text)


def dump_json(value: Any, indent: int | None = None) -> str:
    """Return JSON that every program reads and that is safe to show.

    Args:
        value: JSON-ready. Its texts come back as they are, but for halves of characters, which UTF-8 cannot say: they
            stay escaped, as in `make_plain`.
        indent: Spaces a level; ``None`` makes one line.

    Raises:
        ValueError: If a number is infinite or NaN.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    text = _HALVES.sub(lambda half: "\\" + _escape(half), text)
    return re.sub(f"(?!\n){_UNSHOWABLE.pattern}", lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    is_byte = 0xDC80 <= code <= 0xDCFF  # how Python holds a byte that is not UTF-8 (PEP 383)
    return f"\\x{code - 0xDC00:02x}" if is_byte else found[0].encode("unicode_escape").decode()

"""Texts from outside are shown so that they steer nothing, and JSON is what every program reads."""

from __future__ import annotations

import json

import pytest

from ddim_lightning.report.text import dump_json, make_plain


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a café, 東京, 😀  two spaces", "a café, 東京, 😀  two spaces"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("k\udce9.mp4", r"k\xe9.mp4"),  # a byte of Latin-1, as Python holds it
        ("\ud83d", r"\ud83d"),
    ],
)
def test_nothing_steers_a_terminal_and_nothing_else_changes(text, plain):
    assert make_plain(text) == plain
    assert make_plain(plain) == plain


def test_json_is_safe_to_show_and_comes_back():
    kept = {"prompt": 'a\nb\x1b[31m\x9b\u202e 東京 😀 \\ "', "numbers": [1, 2.5, None, True]}
    for indent in (None, 2):
        text = dump_json(kept, indent)
        assert json.loads(text) == kept
        assert not set(text) & {"\x1b", "\x9b", "\u202e"}
        assert "東京 😀" in text
    assert len(dump_json(kept).splitlines()) == 1


def test_halves_of_characters_are_told_by_escapes():
    text = dump_json({"file": "k\udce9.mp4", "prompt": "\ud83d!"})
    # Strict readers refuse the escape of half a character, so it may not stand there either.
    assert json.loads(text.encode("utf-8")) == {"file": r"k\xe9.mp4", "prompt": r"\ud83d!"}


def test_numbers_that_json_cannot_say_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        dump_json({"psnr": float("nan")})

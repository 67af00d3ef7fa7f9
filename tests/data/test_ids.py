"""Which ids will do as the names of folders."""

from __future__ import annotations

import pytest

from ddim_lightning.data.ids import check_id

GOOD = ["a", "clip-01", "_x", "my holiday", "v1.2", "Ωmega", "é" * 64, "\U0001d400" * 60, "a."]
BAD = [
    *("", ".", "..", ".a", "-a", " a", "a ", "a/b", "a\\b", "/a", "a\nb", "a\0", "a\x7f", "\udc80", "x" * 65),
    *("\U0001d400" * 64, "results.jsonl", "RESULTS.jsonl", "a:b", "a*", None, 3, b"a", ("a",)),
]


@pytest.mark.parametrize("value", GOOD)
def test_what_can_be_the_name_of_a_folder_is_taken(value, tmp_path):
    assert check_id(value) == value
    (tmp_path / value).mkdir()


@pytest.mark.parametrize("value", BAD)
def test_what_cannot_is_refused(value):
    with pytest.raises(ValueError, match="must be"):
        check_id(value)

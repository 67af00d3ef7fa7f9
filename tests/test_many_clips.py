"""A folder of 200 clips, 20 of them broken in ten ways, goes through in one run whose memory stays flat."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.many_clips import BROKEN, GOOD


@pytest.mark.slow
def test_two_hundred_clips_of_which_twenty_are_broken(many_clips):
    assert many_clips.code == 3, many_clips.said[-2000:]
    records = many_clips.records
    assert sorted(record["id"] for record in records) == [record["id"] for record in records]
    done, skipped = many_clips.list("done"), many_clips.list("skipped")
    assert (len(done), len(skipped)) == (GOOD, BROKEN), [record["reason"] for record in skipped]
    assert all(record["reason"] and "\n" not in record["reason"] for record in skipped)
    assert {Path(record["files"]["input"]).name for record in skipped} == {
        path.name for path in many_clips.videos.iterdir() if path.name.startswith(("0 ", "1 "))
    }
    folders = [path.name for path in many_clips.output.iterdir() if path.is_dir()]
    assert sorted(folders) == [record["id"] for record in done]
    (early, early_files), (late, late_files) = many_clips.seen[20], many_clips.seen[GOOD - 2]
    assert late < 1.05 * early, (early, late)
    assert late_files <= early_files + 2

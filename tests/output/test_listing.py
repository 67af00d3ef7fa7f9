"""The list of results, one line a clip."""

from __future__ import annotations

import json

import pytest

from ddim_lightning.output.listing import ResultList, read_list
from ddim_lightning.output.record import dump_record, make_record
from tests.clip_results import make_small_result


def make(clip_id, folder=None, **changes):
    if folder is not None:
        (folder / clip_id).mkdir(exist_ok=True)
    return make_record(make_small_result(clip_id, **changes), {})


def read_ids(folder):
    return [json.loads(line)["id"] for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]


def test_a_record_that_is_done_again_takes_the_place_of_the_earlier_one(tmp_path):
    first = ResultList(tmp_path)
    first.begin()
    for clip_id in ("b", "a"):
        first.add(make(clip_id, tmp_path, seed=1))
    assert read_ids(tmp_path) == ["b", "a"]
    first.end()
    assert read_ids(tmp_path) == ["a", "b"]
    again = ResultList(tmp_path)
    again.begin()
    again.drop("a")
    assert read_ids(tmp_path) == ["b"]
    again.add(make("a", seed=2))
    again.end()
    found = read_list(tmp_path / "results.jsonl")
    assert [(record["id"], record["seed"], record.get("earlier")) for record in found] == [
        ("a", 2, None),
        ("b", 1, True),
    ]


def test_two_processes_write_to_one_list(tmp_path):
    ResultList(tmp_path).begin()
    lists = [ResultList(tmp_path) for _ in range(2)]
    for one in lists:
        one.join()
    for i in range(6):
        lists[i % 2].add(make(f"clip-{i}", tmp_path))
    for one in lists:
        one.end()
    assert read_ids(tmp_path) == [f"clip-{i}" for i in range(6)]


def test_a_clip_whose_folder_is_gone_is_dropped_when_the_next_run_begins(tmp_path):
    ResultList(tmp_path).begin()
    one = ResultList(tmp_path)
    one.join()
    one.add(make("a", tmp_path))
    one.add(make("gone"))
    one.add(make("skipped", status="skipped", reason="no frames"))
    ResultList(tmp_path).begin()
    assert read_ids(tmp_path) == ["a", "skipped"]


@pytest.mark.parametrize("cut", [1, 11, 12, 500])
def test_a_line_that_a_killed_process_left_half_is_dropped(cut, tmp_path):
    lines = [dump_record(make(clip_id, tmp_path)) for clip_id in ("a", "b")]
    (tmp_path / "results.jsonl").write_bytes(lines[0] + lines[1][:cut])
    assert [record["id"] for record in read_list(tmp_path / "results.jsonl")] == ["a"]
    ResultList(tmp_path).begin()
    assert read_ids(tmp_path) == ["a"]


def test_an_editor_may_have_taken_the_last_end_of_line(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(dump_record(make("a", tmp_path)).rstrip())
    ResultList(tmp_path).begin()
    assert read_ids(tmp_path) == ["a"]


def test_what_utf8_cannot_say_is_escaped(tmp_path):
    one = ResultList(tmp_path)
    one.begin()
    one.add(make("a", tmp_path, status="skipped", reason="no video: clip\udce9\u2028.mp4"))
    assert read_list(tmp_path / "results.jsonl")[0]["reason"] == "no video: clip\\xe9\u2028.mp4"

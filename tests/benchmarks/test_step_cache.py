"""The benchmark of step caches, on one edit in few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.check import list_faults
from benchmarks.step_cache import CASES, NO_CACHE, find_best, main, make_markdown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("step-cache")
    flags = ["--edits", "1", "--steps", "8", "--commit", "abc", "--records", str(folder / "records")]
    assert main([*flags, "--output", str(folder)]) == 0
    return folder


def test_its_result_can_be_submitted(folder, result, is_drawn):
    assert list_faults(folder) == []
    assert (folder / "README.md").read_text("utf-8") == make_markdown(result)
    assert is_drawn(folder / "frontier.png")


def test_a_cache_evaluates_less_and_all_that_was_asked_for_is_there(result):
    assert [case["name"] for case in result["cases"]] == list(CASES)
    for case in result["cases"]:
        exact, *others = case["rows"]
        assert (exact["setting"], exact["threshold"], exact["relative_l2"]) == (NO_CACHE, None, 0.0)
        assert all(row["nfe"] <= exact["nfe"] for row in others)
        assert others[-1]["nfe"] < exact["nfe"] and others[-1]["relative_l2"] > 0.0
        asked = CASES[case["name"]]
        assert [row["threshold"] for row in others if row["threshold"] is not None] == list(asked.thresholds)
        assert [row["setting"] for row in others if row["threshold"] is None] == (
            [] if asked.eval_every is None else [f"eval_every {asked.eval_every}"]
        )


def test_what_is_measured_is_not_measured_again(folder, tmp_path):
    flags = ["--edits", "1", "--steps", "8", "--commit", "abc", "--records", str(folder / "records")]
    assert main([*flags, "--output", str(tmp_path)]) == 0
    first, second = (json.loads((where / "result.json").read_text("utf-8")) for where in (folder, tmp_path))
    assert first["cases"] == second["cases"]


def test_the_best_cache_saves_most_of_those_that_lose_little():
    def row(threshold, nfe, whole):
        return {"threshold": threshold, "nfe": nfe, "whole_db": whole}

    rows = [row(None, 100, 20.0), row(None, 10, 20.0), row(0.2, 50, 20.5), row(0.5, 30, 19.1), row(0.8, 20, 18.9)]
    assert find_best({"rows": rows}) is rows[3]
    assert find_best({"rows": [rows[0], rows[4]]}) is rows[0]

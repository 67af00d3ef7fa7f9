"""The benchmark of cold starts, on the ways that need no compiler and one that does."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.check import list_faults
from benchmarks.cold_start import CACHED, EAGER, main, make_markdown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("cold-start")
    flags = ["--model", str(tiny_model), "--ways", "torch-export", CACHED, "--rounds", "1", "--commit", "abc"]
    assert main([*flags, "--output", str(folder)]) == 0
    return folder


def test_its_result_can_be_submitted(folder, result):
    assert list_faults(folder) == []
    assert (folder / "README.md").read_text("utf-8") == make_markdown(result)


def test_every_way_starts_in_a_process_of_its_own_and_finds_the_same(result):
    eager, *others = result["rows"]
    assert (eager["way"], eager["made_s"], eager["mib"], eager["relative_l2"]) == (EAGER, None, None, 0.0)
    assert {row["way"] for row in others} == {"torch-export", CACHED}
    assert all(row["mib"] > 0.0 and row["made_s"] > 0.0 and row["relative_l2"] <= 1e-4 for row in others)
    assert all(row["ready_s"][0] < row["first_step_s"][0] for row in result["rows"])

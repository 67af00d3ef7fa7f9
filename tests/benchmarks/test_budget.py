"""What a budget leaves of a benchmark is a result of its own, which names the rest; on random weights."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path

import pytest

from benchmarks import end_to_end, memory, round_trip
from benchmarks.check import MODULES, list_faults
from benchmarks.deadline import Deadline

STUB = Path(__file__).parent / "reference_stub.py"
CASES = {
    # How many cases there is time for: one of those that are timed, behind the round that warms up.
    "ablation": (8, "--steps", "2", "--rounds", "1", "--edits", "1", "--no-compile"),
    "claims": (2,),
    "end_to_end": (1, "--steps", "2", "--rounds", "1"),
    "forward_passes": (1, "--rounds", "1"),
    "kernels": (1, "--rounds", "1"),
    "memory": (1, "--steps", "2"),
    "scaling": (1, "--rounds", "1"),
    "step_latency": (5, "--steps", "2", "--rounds", "1"),
    "versus_reference": (12, "--script", str(STUB), "--no-compile", "--steps", "2", "--rounds", "1"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_part_is_valid_and_names_the_rest(
    name: str, small_model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = importlib.import_module(f"benchmarks.{name}")
    count, *flags = CASES[name]
    # A clock that goes on by a second with each look: two looks a case, and one before them.
    monkeypatch.setattr(module, "Deadline", lambda budget_s: Deadline(2 * count, itertools.count().__next__))
    for alone in (end_to_end, memory):
        monkeypatch.setattr(alone, "run_fresh", lambda function, *arguments: function(*arguments))
    assert module.main(["--device", "cpu", "--commit", "abc", *flags, "--output", str(tmp_path)]) == 0
    assert list_faults(tmp_path) == []
    left_out = json.loads((tmp_path / "result.json").read_text("utf-8"))["left_out"]
    assert len(set(left_out)) == len(left_out) > 0
    told = (tmp_path / "README.md").read_text("utf-8")
    assert all(case in told for case in left_out)


def test_every_benchmark_with_a_budget_is_tried():
    with_deadline = {name for name, module in MODULES.items() if hasattr(module, "Deadline")}
    with_deadline.discard(round_trip.SCHEMA)  # which needs videos, and is tried with some beside its other tests
    assert {importlib.import_module(f"benchmarks.{name}").SCHEMA for name in CASES} == with_deadline

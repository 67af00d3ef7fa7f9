"""When a benchmark stops starting cases, on a clock of our own."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.arguments import make_parser
from benchmarks.deadline import Deadline


class Clock:
    """Tells the seconds that cases have taken."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def run(
    budget_s: float | None, seconds: dict[str, float], cost: dict[str, float] | None = None
) -> tuple[str, list[str]]:
    """Take cases that take so many seconds; return those that ran, and those left out."""
    clock = Clock()
    deadline, ran = Deadline(budget_s, clock), ""
    for case in deadline.take(seconds, cost=lambda case: (cost or {}).get(case, 1.0)):
        ran += case
        clock.now_s += seconds[case]
    return ran, deadline.left_out


def test_without_a_budget_everything_runs():
    assert run(None, {"a": 1e9, "b": 1e9}) == ("ab", [])


@pytest.mark.parametrize(("budget_s", "ran"), [(60.0, "abcd"), (40.0, "abcd"), (39.0, "abc"), (29.0, "ab"), (0.1, "a")])
def test_no_case_starts_that_would_end_later(budget_s: float, ran: str):
    assert run(budget_s, dict.fromkeys("abcd", 10.0)) == (ran, list("abcd"[len(ran) :]))


def test_a_case_is_expected_to_take_what_the_dearest_took():
    assert run(50.0, {"a": 5.0, "b": 30.0, "c": 5.0, "d": 5.0}) == ("ab", ["c", "d"])


def test_by_what_cases_cost_a_cheap_one_still_runs():
    cost = {"a": 1.0, "b": 10.0, "c": 2.0}
    assert run(50.0, {"a": 10.0, "b": 100.0, "c": 20.0}, cost) == ("ac", ["b"])


def test_what_is_still_to_come_is_named_while_cases_run():
    deadline = Deadline(None)
    named = [(case, deadline.left_out) for case in deadline.take(["a", "b", "c"], name=str.upper)]
    assert named == [("a", ["B", "C"]), ("b", ["C"]), ("c", [])]


def test_every_benchmark_of_speed_takes_a_budget(capsys: pytest.CaptureFixture[str]):
    parser: argparse.ArgumentParser = make_parser("kernels", "What it measures.")
    assert parser.parse_args([]).budget is None
    assert parser.parse_args(["--budget", "540"]).budget == 540.0
    for wrong in ("0", "-1", "soon", "inf", "nan"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--budget={wrong}"])
        assert f"argument --budget: must be a number of seconds above 0, got '{wrong}'" in capsys.readouterr().err

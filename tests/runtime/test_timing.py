"""The clocks and what is summarized of them."""

from __future__ import annotations

import torch

from ddim_lightning.runtime.timing import StepClock, summarize_ms


def test_summaries_leave_out_the_warm_up():
    summary = summarize_ms([900.0, 10.0, 20.0, 30.0, 40.0, 50.0])
    assert summary["step_ms_median"] == 30.0
    assert (summary["step_ms_p10"], summary["step_ms_p90"]) == (14.0, 46.0)
    assert summary["step_ms"][0] == 900.0
    assert summarize_ms([5.0])["step_ms_median"] == 5.0


def test_the_clock_counts_the_gaps_between_marks():
    clock = StepClock(torch.device("cpu"))
    clock.marks = [1.0, 1.5, 3.0]
    assert clock.read_ms() == [500.0, 1500.0]

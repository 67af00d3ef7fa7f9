"""What sharing a clip is predicted to save, in closed form and in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.flops import count_attention, count_linear, count_pass
from benchmarks.predicted_ranks import CASES, SIZES, STEPS, count_job, make_table

ROW = count_pass(SIZES, 1).total


def test_the_documentation_has_the_table():
    assert make_table() in Path("docs/scale.md").read_text("utf-8")


def test_rows_that_read_nothing_are_divided_evenly():
    """Two rows of the edit and two of the source: nothing is inverted."""
    for ranks, rows in ((1, 4), (2, 2), (4, 1), (8, 1)):
        first, job = count_job(*CASES["`FlowEdit`, guided"], ranks)
        assert first == rows * ROW
        assert job % first == 0


def test_a_source_that_two_rows_read_is_evaluated_twice():
    attention = SIZES.layers * count_attention(SIZES.tokens, SIZES.tokens, SIZES.width)
    # In the last layer a source needs its keys and values alone, and it has no velocity.
    spared = 10 * count_linear(SIZES.tokens, SIZES.width, SIZES.width) + attention // SIZES.layers
    spared += count_linear(SIZES.video_tokens, SIZES.width, SIZES.out_channels * SIZES.patch**2)
    for ranks, readers in ((1, 2), (2, 1)):
        first, job = count_job(*CASES["`KVInjection`, one source row, guided"], ranks)
        assert first == (readers + 1) * ROW + readers * attention - spared
        assert job == STEPS * ROW + STEPS * first


@pytest.mark.parametrize("name", CASES)
def test_more_processes_never_have_more_work(name):
    works = [count_job(*CASES[name], ranks) for ranks in (1, 2, 3, 4)]
    assert works == sorted(works, reverse=True)

"""The numbers of the benchmark of edits are what a hand makes of them, and each bar can be missed."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from benchmarks.edit_quality import measure_video
from benchmarks.edit_set import KINDS, make_edit_set
from benchmarks.edit_statistics import Cell, evaluate_adapter_goals, evaluate_goals, gather
from benchmarks.edit_variants import (
    CEILING,
    DEFAULT,
    IN_CONTEXT,
    IN_CONTEXT_GUIDANCE,
    NO_INVERSION,
    NOTHING,
    REFERENCE,
    Job,
)
from ddim_lightning.tiny.shapes import WORDS, render


def make_row(edit: Any, inside: float, outside: float, wrong: tuple[str, ...] = (), **costs: float) -> dict[str, Any]:
    """A record with mean squared errors, whose words are the target's but for the wrong ones."""
    values = {"inside": 3 * int(edit.inside.sum()), "outside": 3 * int((~edit.inside).sum())}
    return {
        "squared_error": {"inside": inside * values["inside"], "outside": outside * values["outside"]},
        "values": values,
        "seen": {word: None if word in wrong else getattr(edit.target, word) for word in WORDS},
        "nfe": 0, "inversion_nfe": 0, "seconds": 0.0, "inversion_seconds": 0.0, **costs,
    }  # fmt: skip


def make_cell(edits: list[Any], inside: float, outside: float, wrong: tuple[str, ...] = (), **costs: float) -> Cell:
    return Cell(edits, [[make_row(edit, inside, outside, wrong, **costs)] for edit in edits])


class TestNumbers:
    def test_errors_are_summed_inside_and_outside(self):
        edit = make_edit_set("test", 3)[2]
        video = torch.rand(1, 9, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        row = measure_video(video, edit)
        sums, counts = Counter[str](), Counter[str]()
        truth = render(edit.target)
        for f, c, y in [(0, 0, 31), (8, 2, 40), (4, 1, 5)]:
            for x in range(64):
                where = "inside" if edit.inside[f, y, x] else "outside"
                sums[where] += (float(video[0, f, c, y, x]) - int(truth[f, c, y, x]) / 255) ** 2
                counts[where] += 1
        # The same of a video that is the truth but in those lines.
        part = truth[None].double() / 255
        for f, c, y in [(0, 0, 31), (8, 2, 40), (4, 1, 5)]:
            part[0, f, c, y] = video[0, f, c, y].double()
        lines = measure_video(part, edit)
        assert counts["inside"] and counts["outside"]
        assert lines["squared_error"] == pytest.approx(dict(sums), rel=1e-6)
        assert sum(row["values"].values()) == 9 * 3 * 64 * 64
        assert row["values"]["inside"] == 3 * int(edit.inside.sum())
        everything = (video[0].double() - truth.double() / 255).square().sum()
        assert sum(row["squared_error"].values()) == pytest.approx(float(everything), rel=1e-9)
        assert lines["seen"]["color"] == edit.target.color

    def test_psnr_pools_errors_not_decibels(self):
        first, second = make_edit_set("test", 2)
        cell = Cell([first, second], [[make_row(first, 0.01, 0.002)], [make_row(second, 0.3, 0.0001)]])
        inside = [3 * int(edit.inside.sum()) for edit in (first, second)]
        outside = [9 * 3 * 64 * 64 - count for count in inside]
        assert inside[0] != inside[1]
        by_hand = {
            "inside": (0.01 * inside[0] + 0.3 * inside[1]) / sum(inside),
            "outside": (0.002 * outside[0] + 0.0001 * outside[1]) / sum(outside),
        }
        by_hand["whole"] = (by_hand["inside"] * sum(inside) + by_hand["outside"] * sum(outside)) / (2 * 9 * 3 * 64 * 64)
        for region, error in by_hand.items():
            value, low, high = cell.estimate_psnr(region).interval
            assert value == pytest.approx(-10 * math.log10(error))
            # Two clips resampled are the first twice, both, or the second twice.
            alone = [cell.take(edit.__eq__).estimate_psnr(region).value for edit in (first, second)]
            assert [low, high] == pytest.approx(sorted(alone))
            drawn = cell.estimate_psnr(region).draws.unique()
            assert drawn.tolist() == pytest.approx(sorted([*alone, value]))

    def test_seeds_are_averaged(self):
        (edit,) = make_edit_set("test", 1)
        cell = Cell([edit], [[make_row(edit, 0.1, 0.1), make_row(edit, 0.3, 0.3, wrong=("color",))]])
        assert cell.estimate_psnr("whole").value == pytest.approx(-10 * math.log10(0.2))
        assert cell.estimate_right(lambda edit: edit.changed).value == 0.5
        assert cell.pick(1).estimate_right(lambda edit: edit.changed).value == 0

    def test_incomplete_edits_are_left_out_everywhere(self):
        edits, jobs = make_edit_set("test", 3), [Job(CEILING), Job(DEFAULT, 3.0)]
        records = {job.make_key(edit.id): make_row(edit, 0.1, 0.1) for edit in edits for job in jobs}
        del records[Job(DEFAULT, 3.0).make_key(edits[1].id)]
        complete, cells = gather(records, edits, jobs)
        assert complete == [edits[0], edits[2]]
        assert set(cells) == {(CEILING, None), (DEFAULT, 3.0)}
        assert all(cell.edits == complete and len(cell.rows) == 2 for cell in cells.values())
        with pytest.raises(ValueError, match="records: must hold all 2 videos of at least one edit, got 0 videos"):
            gather({}, edits, jobs)


class TestBars:
    EDITS = make_edit_set("test", 10)

    def evaluate(self, **changed: Cell) -> dict[str, dict[str, Any]]:
        """Judge a default between the reference (20 dB) and the ceiling (40 dB) at guidance 6."""
        cells = {
            (CEILING, None): make_cell(self.EDITS, 1e-4, 1e-4),
            (NOTHING, None): make_cell(self.EDITS, 1e-2, 1e-2),
            (REFERENCE, 6.0): make_cell(self.EDITS, 1e-2, 1e-2, wrong=("shape",)),
            (DEFAULT, 6.0): changed.get("default", make_cell(self.EDITS, 9e-4, 9e-4, nfe=300)),
        }
        if "noise" in changed:
            cells[NO_INVERSION, 3.0] = changed["noise"]
        return {bar["bar"]: bar for bar in evaluate_goals(cells, 50, 6.0)}

    def test_all_met(self):
        bars = self.evaluate()
        assert len(bars) == 2 + 1 + len(KINDS) + 3
        assert all(bar["met"] for bar in bars.values())
        gap = bars["half the gap from the reference to the ceiling closed, over the whole frame"]
        assert gap["numbers"] == "52% [52%, 52%] of it: reference 20.00, default 30.46, ceiling 40.00 dB"

    def test_each_can_fail(self):
        outside = self.evaluate(default=make_cell(self.EDITS, 1e-4, 1.1e-3, wrong=("direction",), nfe=301))
        assert {bar for bar, told in outside.items() if not told["met"]} == {
            "half the gap from the reference to the ceiling closed, outside the objects",
            "NFE at most 6 N",
            "direction right at least as often as the reference",
        }

    def test_one_kind_may_be_exempt_if_the_model_does_not_know_its_word(self):
        worse = Cell(
            self.EDITS,
            [
                [make_row(edit, *((0.02, 0.02) if edit.kind in ("color", "shape", "both") else (9e-4, 9e-4)))]
                for edit in self.EDITS
            ],
        )
        noise = make_cell(self.EDITS, 0.1, 0.1, wrong=("shape",))
        bars = self.evaluate(default=worse, noise=noise)
        words = "better than doing nothing over the whole frame"
        color, shape, both = (bars[f"{words}, {kind}"] for kind in ("color", "shape", "both"))
        assert (shape["met"], shape["exempt"]) == (False, True)
        assert "right in 0%" in shape["numbers"]
        assert (color["met"], color["exempt"]) == (False, False)  # the model knows its colors
        assert (both["met"], both["exempt"]) == (False, False)  # one is enough

    def test_without_the_reference_nothing_is_judged(self):
        assert evaluate_goals({(DEFAULT, 6.0): make_cell(self.EDITS, 0.1, 0.1)}, 50, 6.0) == []


class TestAdapterGoals:
    EDITS = make_edit_set("test", 10)

    def evaluate(self, **own):
        cells = {(DEFAULT, 2.0): make_cell(self.EDITS, 1e-2, 1e-2)}
        cells[IN_CONTEXT, IN_CONTEXT_GUIDANCE] = make_cell(self.EDITS, **{"inside": 1e-3, "outside": 5e-4, **own})
        return {bar["bar"]: bar["met"] for bar in evaluate_adapter_goals(cells, 2.0)}

    def test_all_met(self):
        bars = self.evaluate(nfe=17)
        assert len(bars) == 8 and all(bars.values())

    def test_each_can_fail(self):
        missed = self.evaluate(inside=0.1, outside=0.1, wrong=("shape",), nfe=22)
        assert {bar.removeprefix("in context: ") for bar, met in missed.items() if not met} == {
            "at least 28.00 dB whole",
            "at least 30.50 dB outside",
            "at least 20.00 dB for backgrounds, as the default has",
            "shape right in at least 93%",
            "at most 21 NFE",
        }

    def test_without_the_default_nothing_is_judged(self):
        cells = {(IN_CONTEXT, IN_CONTEXT_GUIDANCE): make_cell(self.EDITS, 1e-3, 1e-3)}
        assert evaluate_adapter_goals(cells, 2.0) == []

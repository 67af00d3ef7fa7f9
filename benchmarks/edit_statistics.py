"""The records of `edit_quality` become numbers with intervals, and say whether its goals are met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.tiny.shapes import WORDS

from .edit_set import KINDS, ShapesEdit
from .edit_variants import (
    CEILING,
    DEFAULT,
    IN_CONTEXT,
    IN_CONTEXT_GUIDANCE,
    NO_INVERSION,
    NOTHING,
    REFERENCE,
    VARIANTS,
    Job,
)

REGIONS = {"whole": ("inside", "outside"), "inside": ("inside",), "outside": ("outside",)}
"""Region of the table to the regions of the records that it sums."""

DRAWS = 2000
CONFIDENCE = 0.95
MODEL_LIMIT = 0.8
"""One kind of edit is exempt from beating the source where the model gets its words right less often than this."""

Row = Mapping[str, Any]
Method = tuple[str, float | None]
"""A name and a guidance scale."""


@dataclass(frozen=True)
class Estimate:
    """An `Estimate` is a number and what resampling the edits makes of it.

    Args:
        value: The number.
        draws: (draws,) float64; two estimates over the same edits are drawn alike, so that their difference is
            paired.
    """

    value: float
    draws: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """Return the estimate of a function of the number."""
        return Estimate(float(function(torch.tensor(self.value, dtype=torch.float64))), function(self.draws))

    @property
    def interval(self) -> list[float]:
        """The number and the ends of its percentile interval."""
        ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
        return [self.value, *self.draws.quantile(ends).tolist()]


@dataclass(frozen=True)
class Cell:
    """A `Cell` is what one method made of several edits.

    Args:
        edits: The edits.
        rows: For each edit its records, one a seed.
    """

    edits: Sequence[ShapesEdit]
    rows: Sequence[Sequence[Row]]

    def take(self, wanted: Callable[[ShapesEdit], bool]) -> Cell:
        """Return the part of some of the edits."""
        pairs = [pair for pair in zip(self.edits, self.rows, strict=True) if wanted(pair[0])]
        return Cell([edit for edit, _ in pairs], [rows for _, rows in pairs])

    def pick(self, seed: int) -> Cell:
        """Return the part of one seed."""
        return Cell(self.edits, [[rows[seed]] for rows in self.rows])

    def estimate_psnr(self, region: str) -> Estimate:
        """Return decibels from one mean squared error over all values of a region of all edits."""
        sums = [_add_errors(rows, region) for rows in self.rows]
        return _estimate_ratio([error for error, _ in sums], [values for _, values in sums]).map(_to_decibels)

    def list_psnr(self) -> list[float]:
        """Return the decibels of each edit, over the whole frame."""
        ratios = [error / values for error, values in (_add_errors(rows, "whole") for rows in self.rows)]
        return [-10 * math.log10(ratio) for ratio in ratios]

    def estimate_right(self, words: Callable[[ShapesEdit], Sequence[str]]) -> Estimate:
        """Return the share of words, of those named for each edit, that the classifier sees as the target has them."""
        part = self.take(lambda edit: bool(words(edit)))
        right = [
            sum(row["seen"][word] == getattr(edit.target, word) for row in rows for word in words(edit))
            for edit, rows in zip(part.edits, part.rows, strict=True)
        ]
        asked = [len(rows) * len(words(edit)) for edit, rows in zip(part.edits, part.rows, strict=True)]
        return _estimate_ratio(right, asked)

    def average(self, name: str) -> float:
        """Return the mean of a number of the records."""
        return statistics.fmean(row[name] for rows in self.rows for row in rows)


def of_kind(kind: str) -> Callable[[ShapesEdit], bool]:
    """Return whether an edit is of a kind, as a function."""
    return lambda edit: edit.kind == kind


def list_word(word: str) -> Callable[[ShapesEdit], Sequence[str]]:
    """Return a word for every edit, as a function."""
    return lambda edit: (word,)


def list_changed(*words: str) -> Callable[[ShapesEdit], Sequence[str]]:
    """Return those of some words that an edit changes, as a function; without words, all that it changes."""
    return lambda edit: [word for word in edit.changed if not words or word in words]


def gather(
    records: Mapping[str, Row], edits: Sequence[ShapesEdit], jobs: Sequence[Job]
) -> tuple[list[ShapesEdit], dict[Method, Cell]]:
    """Sort records by method; edits of which a record is missing are left out everywhere.

    Args:
        records: By key.
        edits: Those asked for.
        jobs: What is made for each edit.

    Returns:
        The edits that are complete, and the cell of each method over them.

    Raises:
        ValueError: No edit is complete.
    """
    complete = [edit for edit in edits if all(job.make_key(edit.id) in records for job in jobs)]
    if not complete:
        raise ValueError(f"records: must hold all {len(jobs)} videos of at least one edit, got {len(records)} videos")
    methods = {(job.method, job.guidance): [other for other in jobs if _same(job, other)] for job in jobs}
    cells = {
        method: Cell(complete, [[records[job.make_key(edit.id)] for job in seeds] for edit in complete])
        for method, seeds in methods.items()
    }
    return complete, cells


def summarize(method: Method, cell: Cell) -> dict[str, Any]:
    """Return one row of the result, JSON-ready."""
    name, guidance = method
    seeds = len(cell.rows[0])
    each = [cell.pick(seed) for seed in range(seeds)]
    return {
        "method": name,
        "guidance": guidance,
        "variant": repr(VARIANTS[name]) if name in VARIANTS else None,
        "seeds": seeds,
        **{cost: cell.average(cost) for cost in ("nfe", "inversion_nfe", "seconds", "inversion_seconds")},
        "all": _summarize_part(cell),
        "kinds": {kind: _summarize_part(part) for kind in KINDS if (part := cell.take(of_kind(kind))).edits},
        "each_seed": {
            "psnr_db": [part.estimate_psnr("whole").value for part in each],
            "edited": [part.estimate_right(list_changed()).value for part in each],
        },
    }


def evaluate_goals(cells: Mapping[Method, Cell], steps: int, guidance: float) -> list[dict[str, Any]]:
    """Compare the default editor with the bars.

    Args:
        cells: By method.
        steps: Steps of inversion and edit.
        guidance: The default scale.

    Returns:
        For each bar its words, ``met`` and the numbers in words; none where a method that it needs was not measured.
    """
    needed: list[Method] = [(CEILING, None), (NOTHING, None), (REFERENCE, 6.0), (DEFAULT, guidance)]
    if any(method not in cells for method in needed):
        return []
    ceiling, nothing, reference, default = (cells[method] for method in needed)
    bars = [_judge_gap(region, reference, default, ceiling) for region in ("whole", "outside")]
    nfe = default.average("nfe")
    bars.append(_make_bar("NFE at most 6 N", nfe <= 6 * steps, f"{nfe:.0f} of {6 * steps}"))
    bars += _judge_kinds(default, nothing, cells)
    words = [word for word in ("color", "shape", "direction") if any(word in edit.changed for edit in default.edits)]
    return bars + [_judge_word(word, reference, default) for word in words]


def evaluate_adapter_goals(cells: Mapping[Method, Cell], guidance: float) -> list[dict[str, Any]]:
    """Compare the bundled adapter, as it is recommended, with its bars; see `evaluate_goals`.

    Args:
        cells: By method.
        guidance: The scale of the default editor.
    """
    own, default = cells.get((IN_CONTEXT, IN_CONTEXT_GUIDANCE)), cells.get((DEFAULT, guidance))
    if own is None or default is None:
        return []

    def judge(region: str, least: float, cell: Cell = own, what: str = "") -> dict[str, Any]:
        value, low, high = cell.estimate_psnr(region).interval
        numbers = f"{value:.2f} [{low:.2f}, {high:.2f}] dB"
        return _make_bar(f"in context: at least {least:.2f} dB {what or region}", value >= least, numbers)

    bars = [judge(region, least) for region, least in (("whole", 28.0), ("outside", 30.5))]
    kind = of_kind("background")
    if default.take(kind).edits:
        best = default.take(kind).estimate_psnr("whole").value
        bars.append(judge("whole", best, own.take(kind), "for backgrounds, as the default has"))
    for word, least in (("shape", 0.93), ("color", 0.99), ("background", 0.99), ("direction", 0.99)):
        right = own.estimate_right(list_word(word)).value
        bars.append(_make_bar(f"in context: {word} right in at least {least:.0%}", right >= least, f"{right:.1%}"))
    nfe = own.average("nfe")
    return [*bars, _make_bar("in context: at most 21 NFE", nfe <= 21, f"{nfe:.0f}")]


def _judge_gap(region: str, reference: Cell, default: Cell, ceiling: Cell) -> dict[str, Any]:
    low, own, high = (cell.estimate_psnr(region) for cell in (reference, default, ceiling))
    closed = (own.value - low.value) / (high.value - low.value)
    _, least, most = Estimate(closed, (own.draws - low.draws) / (high.draws - low.draws)).interval
    numbers = (
        f"{closed:.0%} [{least:.0%}, {most:.0%}] of it: reference {low.value:.2f}, default {own.value:.2f}, "
        f"ceiling {high.value:.2f} dB"
    )
    place = "over the whole frame" if region == "whole" else f"{region} the objects"
    return _make_bar(f"half the gap from the reference to the ceiling closed, {place}", closed >= 0.5, numbers)


def _judge_kinds(default: Cell, nothing: Cell, cells: Mapping[Method, Cell]) -> list[dict[str, Any]]:
    bars, exempt = [], False
    for kind, words in KINDS.items():
        own, still = (cell.take(of_kind(kind)) for cell in (default, nothing))
        if not own.edits:
            continue
        ours, theirs = own.estimate_psnr("whole"), still.estimate_psnr("whole")
        gain = Estimate(ours.value - theirs.value, ours.draws - theirs.draws).interval
        numbers = f"{gain[0]:+.2f} [{gain[1]:+.2f}, {gain[2]:+.2f}] dB: {ours.value:.2f} against {theirs.value:.2f}"
        bar = _make_bar(f"better than doing nothing over the whole frame, {kind}", gain[0] > 0, numbers)
        noise = cells.get((NO_INVERSION, 3.0))
        if not bar["met"] and not exempt and noise is not None:
            right = min(noise.estimate_right(list_word(word)).value for word in words)
            if exempt := right < MODEL_LIMIT:
                bar["numbers"] += f"; exempt: from noise at guidance 3 the model is right in {right:.0%}"
                bar["exempt"] = True
        bars.append(bar)
    return bars


def _judge_word(word: str, reference: Cell, default: Cell) -> dict[str, Any]:
    edited = [cell.estimate_right(list_changed(word)).value for cell in (default, reference)]
    everywhere = [cell.estimate_right(list_word(word)).value for cell in (default, reference)]
    numbers = (
        f"{edited[0]:.0%} against {edited[1]:.0%} where it was to change, "
        f"{everywhere[0]:.0%} against {everywhere[1]:.0%} over all edits"
    )
    met = edited[0] >= edited[1] and everywhere[0] >= everywhere[1]
    return _make_bar(f"{word} right at least as often as the reference", met, numbers)


def _make_bar(text: str, met: bool, numbers: str) -> dict[str, Any]:
    return {"bar": text, "met": met, "exempt": False, "numbers": numbers}


def _summarize_part(cell: Cell) -> dict[str, Any]:
    decibels = cell.list_psnr()
    return {
        "edits": len(cell.edits),
        "psnr_db": {region: cell.estimate_psnr(region).interval for region in REGIONS},
        "each_clip_psnr_db": {"mean": statistics.fmean(decibels), "worst": min(decibels)},
        "edited": cell.estimate_right(list_changed()).interval,
        "kept": cell.estimate_right(lambda edit: edit.kept).interval,
        "right": {word: cell.estimate_right(list_word(word)).value for word in WORDS},
        "edited_right": {
            word: cell.estimate_right(list_changed(word)).value
            for word in WORDS
            if any(word in edit.changed for edit in cell.edits)
        },
    }


def _same(job: Job, other: Job) -> bool:
    return (job.method, job.guidance) == (other.method, other.guidance)


def _add_errors(rows: Sequence[Row], region: str) -> tuple[float, int]:
    """Return the sum of squared errors and of values of a region, over all seeds."""
    parts = REGIONS[region]
    error = sum(row["squared_error"][part] for row in rows for part in parts)
    return error, sum(row["values"][part] for row in rows for part in parts)


def _estimate_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Return the ratio of two sums over edits, and the same of resampled edits."""
    above, below = (torch.tensor(values, dtype=torch.float64) for values in (numerators, denominators))
    chosen = torch.randint(len(above), (DRAWS, len(above)), generator=torch.Generator().manual_seed(0))
    return Estimate(float(above.sum() / below.sum()), above[chosen].sum(dim=1) / below[chosen].sum(dim=1))


def _to_decibels(error: Tensor) -> Tensor:
    return -10 * error.log10()

"""The numbers of a run on a public benchmark stand in a table with what others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BETTER = {"higher": "↑", "lower": "↓"}


@dataclass(frozen=True)
class BenchmarkRow:
    """A `BenchmarkRow` is one method.

    Args:
        method: Its name.
        source: Where its numbers were published; ``None`` for what was measured here.
        numbers: By column; ``None`` where there is none.
    """

    method: str
    source: str | None
    numbers: Sequence[float | None]


@dataclass(frozen=True)
class BenchmarkTable:
    """A `BenchmarkTable` is what a page shows of ``benchmark.json``.

    Args:
        title: The benchmark.
        source: Its paper and repository.
        columns: Headings, with an arrow towards what is better.
        rows: What was measured here first.
        missing: Sentences about what could not be measured here.
    """

    title: str
    source: str
    columns: Sequence[str]
    rows: Sequence[BenchmarkRow]
    missing: Sequence[str]


def make_benchmark_table(summary: object) -> BenchmarkTable | None:
    """Make the table of a summary; ``None`` where there is nothing to show, or somebody else wrote the summary.

    Args:
        summary: The content of ``benchmark.json``.
    """
    try:
        assert isinstance(summary, Mapping)
        columns = [(str(one["number"]), f"{one['title']} {_BETTER[one['better']]}") for one in summary["columns"]]
        rows = [
            BenchmarkRow(
                str(row["method"]),
                None if row["source"] is None else str(row["source"]),
                [_read_number(row["numbers"], name) for name, _ in columns],
            )
            for row in summary["rows"]
        ]
        missing = [str(sentence) for sentence in summary["missing"]]
        table = BenchmarkTable(str(summary["title"]), str(summary["source"]), [t for _, t in columns], rows, missing)
    except (AssertionError, LookupError, TypeError, ValueError, AttributeError):
        return None
    return table if columns and rows else None


def _read_number(numbers: Mapping[str, Any], name: str) -> float | None:
    value = numbers.get(name)
    return None if value is None else float(value)

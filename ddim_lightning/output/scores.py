"""The edits of a public benchmark are measured as it defines, once each, and averaged beside what others published."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from ddim_lightning.data.benchmark import Benchmark, BenchmarkEdit
from ddim_lightning.data.ids import SUMMARY
from ddim_lightning.data.listing import name_some
from ddim_lightning.metrics.measurer import Measurer, load_measurer
from ddim_lightning.metrics.measures import Networks, check_measures
from ddim_lightning.output.benchmark_frames import read_pieces
from ddim_lightning.report.text import dump_json

SCHEMA = 1
"""Version of the keys of the summary."""
Record = Mapping[str, Any]


@dataclass
class Scorer:
    """A `Scorer` measures the edits of a run that it has not measured before, and keeps the summary of all.

    Args:
        benchmark: What was run.
        folder: The output folder of the run.
        networks: Where the networks of measures lie.
        device: Where they work.

    Raises:
        ValueError: If the config asks for a measure that there is not.
        OSError: If a network that is named is not there.
    """

    benchmark: Benchmark
    folder: Path
    networks: Networks
    device: str

    def __post_init__(self) -> None:
        asked: dict[int, list[str]] = {}
        for number in self.benchmark.config.numbers:
            if number.measure is not None:
                asked.setdefault(number.every or self.benchmark.config.every, []).append(number.measure)
        self.measurers = {
            every: load_measurer(check_measures(names), self.networks, self.device) for every, names in asked.items()
        }

    def score(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """Measure what is new, write the summary and return it.

        Args:
            records: Of the clips that are done, by their ids.
        """
        former = self._read_former()
        rows: list[tuple[BenchmarkEdit, dict[str, Any]]] = []
        for edit in self.benchmark.edits:
            if edit.clip in records:
                file = records[edit.clip]["files"]["edits"][edit.index]
                digest = self._digest(records[edit.clip], file)
                known = former.get((edit.clip, edit.index), {})
                place = {
                    "clip": edit.clip,
                    "index": edit.index,
                    "table": edit.table,
                    "prompt": edit.prompt,
                    "file": file,
                }
                is_done = known.get("digest") == digest and not known.get("problems")
                numbers = known["numbers"] if is_done else None
                rows.append((edit, {**place, "digest": digest, "numbers": numbers, "problems": []}))
        for edit, row in rows:
            if row["numbers"] is None:
                measured = self._measure(edit, self.folder / edit.clip / row["file"], records[edit.clip])
                row["numbers"], row["problems"] = measured
                self._write([row for _, row in rows])  # so that nothing is measured again where this is stopped
        return self._write([row for _, row in rows])

    def _write(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        summary = self._sum_up([row for row in rows if row["numbers"] is not None])
        made = self.folder / f".{SUMMARY}.{os.getpid()}.partial"
        made.write_text(dump_json(summary, indent=2) + "\n", encoding="utf-8", errors="backslashreplace")
        made.replace(self.folder / SUMMARY)
        return summary

    def _measure(self, edit: BenchmarkEdit, video: Path, record: Record) -> tuple[dict[str, float | None], list[str]]:
        """Measure one edit, and say what could not be measured, which costs none of the others."""
        found: dict[str, float] = {}
        problems: list[str] = []
        for every, measurer in self.measurers.items():
            measuring = measurer.start(edit.prompt)
            try:
                for piece in read_pieces(edit, video, record, every):
                    measuring.add(piece)
                found |= measuring.read()
            except (OSError, ValueError, IndexError) as error:
                measuring.problems.append(" ".join(str(error).split()))
            problems += measuring.problems
        for problem in dict.fromkeys(problems):
            warnings.warn(f"{edit.origin}: not measured: {problem}", stacklevel=2)
        numbers = {name: value if math.isfinite(value) else None for name, value in found.items()}
        return numbers, list(dict.fromkeys(problems))

    def _digest(self, record: Record, file: str) -> str:
        """What the numbers of an edit depend on."""
        measured = {every: one.names for every, one in self.measurers.items()}  # without those that lack a network
        parts = [
            record.get("fingerprint"),
            file,
            measured,
            [getattr(self.networks, one.name) for one in fields(Networks)],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _read_former(self) -> dict[tuple[str, int], Mapping[str, Any]]:
        try:
            summary = json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))
            return {(row["clip"], row["index"]): row for row in summary["edits"] if isinstance(row["numbers"], dict)}
        except (OSError, ValueError, LookupError, TypeError):  # none, or of another program
            return {}

    def _sum_up(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        config, edits = self.benchmark.config, self.benchmark.edits
        ours = {
            number.number: number.times * mean
            for number in config.numbers
            if number.measure is not None and (mean := _average(rows, number.number)) is not None
        }
        published = [
            {
                "method": row["method"],
                "source": one.source,
                "numbers": {name: value for name, value in row.items() if name != "method"},
            }
            for one in config.published
            for row in one.rows
        ]
        only = f", of {name_some(self.benchmark.chosen)} alone" if self.benchmark.chosen else ""
        num_measured = sum(not row["problems"] for row in rows)
        method = f"this run, {num_measured} of {len(edits)} edits{only}"
        return {
            "schema": SCHEMA,
            "benchmark": self.benchmark.name,
            "title": config.title,
            "source": config.source,
            "columns": [
                {"number": number.number, "title": number.title, "better": number.better} for number in config.numbers
            ],
            "rows": [{"method": method, "source": None, "numbers": ours}, *published],
            "missing": _list_missing(self.measurers.values()),
            "edits": rows,
        }


def _average(rows: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """Average over the edits of each table, and over the tables, as FiVE-Bench does; a table of its own is one."""
    tables: dict[str, list[float]] = {}
    for row in rows:
        if (value := row["numbers"].get(name)) is not None:
            tables.setdefault(row["table"], []).append(value)
    return fmean(map(fmean, tables.values())) if tables else None


def _list_missing(measurers: Iterable[Measurer]) -> list[str]:
    found = {name: sentence for one in measurers for name, sentence in one.missing.items()}
    return [f"{name}: {sentence}" for name, sentence in found.items()]

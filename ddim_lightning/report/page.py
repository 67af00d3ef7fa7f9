"""The page of a run shows its clips in a browser: videos in step, numbers and settings, in one file without a network.

A page of two runs shows them clip by clip. Nothing is read here: the caller has records, and addresses of their files.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ddim_lightning.report.cards import Card, Record, ReportedRun, make_cards
from ddim_lightning.report.numbers import TOTAL, Number, describe_number, format_number, order_keys
from ddim_lightning.report.settings import find_common, flatten, lay_side_by_side
from ddim_lightning.report.text import make_plain

GENERATOR = '<meta name="generator" content="ddim-lightning report">'
"""What a page says made it, so that nobody else's page is replaced."""
_ASSETS = Path(__file__).parents[1] / "assets" / "report"
_FACTS = {
    "model": "model",
    "inverter": "inverter",
    "editor": "editor",
    "schedule.num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "device": "device",
}
"""Settings that stand at the top, and how they are called there."""


@dataclass(frozen=True)
class Column:
    """A `Column` is a number of every clip: of run A, of run B, or how much more B has; of one run, just that."""

    number: Number
    view: str
    values: list[float | None]
    mean: float | None
    """Over the clips that have it, of two runs over those that both have. Equal videos have no decibels to average."""

    @property
    def key(self) -> str:
        """A word that no other column has."""
        return f"{self.number.key} {self.view}".strip()

    @property
    def is_shown(self) -> bool:
        """Whether the table of all clips has it; one can sort by the others, too."""
        return self.number.key.startswith("metrics.") or self.number.key.endswith(f".{TOTAL}")


def make_page(runs: Sequence[ReportedRun], *, written: str) -> str:
    """Make the page of one run, or the page that compares a second run with the first.

    Args:
        runs: One or two.
        written: When, for the reader.

    Returns:
        HTML. Texts from outside are escaped. The page's own policy lets no script run but ours, and no network
        be asked.
    """
    cards = make_cards(runs)
    script, style = ((_ASSETS / f"page.{kind}").read_text("utf-8") for kind in ("js", "css"))
    columns = make_columns(cards, len(runs))
    common = [find_common(flatten(record.get("settings")) for record in _get_done(run)) for run in runs]
    versions = [find_common(flatten(record["versions"]) for record in run.records) for run in runs]
    return (
        make_environment()
        .get_template("page.html")
        .render(
            generator=Markup(GENERATOR),
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            script=Markup(script),
            style=Markup(style),
            written=written,
            runs=runs,
            marks=["A", "B"] if len(runs) > 1 else [""],
            cards=cards,
            columns=columns,
            groups=_group(columns),
            values={column.key: [_to_json(value) for value in column.values] for column in columns},
            counts=[_count(run.records) for run in runs],
            skipped=[[record for record in run.records if record["status"] == "skipped"] for run in runs],
            facts=[[(title, values[name]) for name, title in _FACTS.items() if name in values] for values in common],
            tables={"Settings": lay_side_by_side(common), "Versions": lay_side_by_side(versions)},
        )
    )


def make_environment() -> Environment:
    """Make what fills templates; texts are escaped, and numbers are named and rounded as everywhere."""
    environment = Environment(loader=FileSystemLoader(_ASSETS), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters.update(plain=lambda text: make_plain(str(text)), number=format_number, describe=describe_number)
    environment.tests["finite"] = math.isfinite
    return environment


def make_columns(cards: Sequence[Card], num_runs: int) -> list[Column]:
    """Lay out all numbers of all clips, a column each; of two runs, three."""
    views: dict[str, Callable[[Card, str], float | None]] = {"": lambda card, key: _get_number(card, 0, key)}
    if num_runs > 1:
        views = {
            "A": lambda card, key: _get_number(card, 0, key),
            "B": lambda card, key: _get_number(card, 1, key),
            "B - A": lambda card, key: _subtract(_get_number(card, 1, key), _get_number(card, 0, key)),
        }
    keys = order_keys([key for card in cards for side in card.sides for key in side.numbers])
    columns: list[Column] = []
    for key in keys:
        values = {view: [read(card, key) for card in cards] for view, read in views.items()}
        means = _average(values)
        columns += [Column(describe_number(key), view, values[view], means[view]) for view in views]
    return columns


def _average(values: Mapping[str, Sequence[float | None]]) -> dict[str, float | None]:
    """Average the columns of a number over the clips of which all of them have it."""
    shared: list[tuple[float, ...]] = []
    for row in zip(*values.values(), strict=True):
        known = tuple(value for value in row if value is not None and math.isfinite(value))
        if len(known) == len(row):
            shared.append(known)
    return {view: fmean(row[k] for row in shared) if shared else None for k, view in enumerate(values)}


def _get_number(card: Card, run: int, key: str) -> float | None:
    side = card.get_side(run)
    return None if side is None else side.numbers.get(key)


def _subtract(second: float | None, first: float | None) -> float | None:
    if second is None or first is None:
        return None
    if second == first:
        return 0
    return second - first if math.isfinite(second) and math.isfinite(first) else None


def _group(columns: Sequence[Column]) -> dict[str, list[Column]]:
    groups: dict[str, list[Column]] = {}
    for column in columns:
        groups.setdefault(column.number.group, []).append(column)
    return groups


def _to_json(value: float | None) -> float | str | None:
    return "Infinity" if value == math.inf else value


def _get_done(run: ReportedRun) -> list[Record]:
    return [record for record in run.records if record["status"] == "done"]


def _count(records: Sequence[Record]) -> dict[str, int]:
    counts = {status: sum(record["status"] == status for record in records) for status in ("done", "skipped")}
    return counts | {"earlier": sum("earlier" in record for record in records)}

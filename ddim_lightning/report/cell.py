"""A cell of a notebook shows clips: the contact sheet, the videos and the numbers of each."""

from __future__ import annotations

from collections.abc import Sequence

from ddim_lightning.report.cards import ReportedRun, make_cards
from ddim_lightning.report.numbers import TOTAL
from ddim_lightning.report.page import make_environment

_TOTALS = [f"{part}.{TOTAL}" for part in ("nfe", "seconds", "peak_gib")]


def make_cell(clips: Sequence[ReportedRun], *, num_more: int = 0, missing: str = "no file") -> str:
    """Make the HTML of a cell, which runs no script and sets no colors, so that it fits every theme.

    Args:
        clips: Each as a run of its own, whose ``video`` gives the addresses of videos and whose ``link`` that of the
            sheet.
        num_more: Clips that are left out.
        missing: Stands in the place of a video that has no address.

    Returns:
        A piece of HTML. Texts from outside are escaped.
    """
    cards = [card for clip in clips for card in make_cards([clip])]
    others = [record for clip in clips for record in clip.records if record["status"] != "done"]
    template = make_environment().get_template("cell.html")
    return template.render(cards=cards, others=others, totals=_TOTALS, num_more=num_more, missing=missing)

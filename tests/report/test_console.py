"""What is printed of a run cannot steer the terminal it is printed to."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
from lightning import Trainer

from ddim_lightning.report.console import plain_output, tell_records
from ddim_lightning.report.tables import print_edits

NASTY = "[red]\x1b[31m:cat:\x9b\u202e\udce9[bold]"
SHOWN = r"[red]\x1b[31m:cat:\x9b\u202e\xe9[bold]"
STEERS = {"\x1b", "\x9b", "\u202e"}


def make_record(status, **fields):
    metrics = {"vae": {"psnr": 30.0}, "reconstruction": {}, "edits": []}
    shared = {"id": NASTY, "status": status, "warnings": [], "frames": {"count": 5}, "metrics": metrics}
    return {**shared, "seconds": {}, "files": {"sheet": f"{NASTY}.png"}, **fields}


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def test_ids_reasons_and_warnings_are_shown_as_they_are_written(capsys):
    records = [make_record("done", warnings=[f"prompt {NASTY}"]), make_record("skipped", reason=NASTY)]
    assert tell_records(records, Path("out", NASTY, "results.jsonl"), "index.html") == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[:2] == [f"warning: {SHOWN}: prompt {SHOWN}", f"skipped: {SHOWN}: {SHOWN}"]
    assert told.out.count(SHOWN) == 4  # a row of the table, and a path of three parts
    assert not set(told.out + told.err) & STEERS


def test_json_is_safe_too(capsys):
    assert tell_records([make_record("done")], Path("results.jsonl"), "index.html", as_json=True) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["clips"][0]["id"] == NASTY.replace("\udce9", r"\xe9")
    assert not set(out) & STEERS


def test_a_warning_is_one_safe_line(capsys):
    with plain_output(as_json=False):
        warnings.warn(f"two\nlines {NASTY}", stacklevel=1)
    assert capsys.readouterr().err == f"warning: two lines {SHOWN}\n"


def test_what_lightning_finds_is_told_and_what_it_would_sell_is_not(caplog):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "lightning.pytorch"), plain_output(as_json=False):
            Trainer(accelerator="cpu", logger=False)
    finally:
        logger.removeHandler(caplog.handler)
    assert "GPU available" in caplog.text and "Tip" not in caplog.text


def test_a_change_is_no_markup(capsys):
    row = dict.fromkeys(("vae", "reconstruction", "edit", "in_context", "do_nothing"), 1.0)
    print_edits([row | {"clip": NASTY, "change": NASTY}])
    assert capsys.readouterr().out.count(SHOWN) == 2

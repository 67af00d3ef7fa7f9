"""What a command says goes to a person's terminal, or as JSON to a program; texts from outside cannot steer either."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim_lightning.report.text import dump_json, make_plain


def say(line: str) -> None:
    """Print a line on stderr."""
    print(make_plain(line), file=sys.stderr, flush=True)


def tell_records(
    records: Sequence[Mapping[str, Any]],
    listed: Path,
    page: str,
    *,
    as_json: bool = False,
    quiet: bool = False,
    truth: Mapping[str, Any] | None = None,
) -> int:
    """Tell what became of the clips of a run, and return how many were skipped.

    Args:
        records: As in ``result.json``.
        listed: The list of results, in the output folder.
        page: Name of the page beside it that shows them, if it could be written.
        as_json: Print all of it as JSON on stdout.
        quiet: Print warnings and skipped clips only.
        truth: What else is known of the clips, for JSON; the table of results is then printed elsewhere.
    """
    from ddim_lightning.report.tables import print_paths, print_results  # here, so that a mistake is told at once

    for record in records:
        for sentence in record["warnings"]:
            say(f"warning: {record['id']}: {sentence}")
    done, skipped = ([one for one in records if one["status"] == status] for status in ("done", "skipped"))
    if as_json:
        counts = {
            "done": len(done),
            "skipped": len(skipped),
            "results": str(listed),
            "report": str(listed.with_name(page)),
        }
        print(dump_json({**counts, "clips": records, **(truth or {})}))
    elif not quiet:
        if truth is None:
            print_results(done)
        print_paths(str(listed.parent), done)
        if listed.with_name(page).is_file():
            print(make_plain(str(listed.with_name(page))))
    for record in skipped:
        say(f"skipped: {record['id']}: {record['reason']}")
    if skipped:
        say(f"{len(skipped)} of {len(records)} clips were skipped, see {listed}")
    return len(skipped)


@contextlib.contextmanager
def plain_output(as_json: bool) -> Iterator[None]:
    """Show a warning as one line, without the code that raised it; with JSON wanted, keep stdout free for it.

    Of what Lightning says, its tips for other products are left out.
    """

    def show(message: Any, *_: Any, **__: Any) -> None:
        say(f"warning: {' '.join(str(message).split())}")

    stdout = sys.stderr if as_json else sys.stdout
    with warnings.catch_warnings(), contextlib.redirect_stdout(stdout), contextlib.ExitStack() as stack:
        for part in ("pytorch", "fabric"):
            logger = logging.getLogger(f"lightning.{part}.utilities.rank_zero")
            logger.addFilter(_is_no_tip)
            stack.callback(logger.removeFilter, _is_no_tip)
        warnings.showwarning = show
        warnings.filterwarnings("ignore", "clip ")  # told at the end
        for category in (DeprecationWarning, FutureWarning):  # between our dependencies, not for who runs a command
            warnings.simplefilter("ignore", category)
        yield


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()


@contextlib.contextmanager
def silent_lightning() -> Iterator[None]:
    """Keep Lightning from telling what devices there are, what to install, and how many workers it would take."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.filterwarnings("ignore", module=r"lightning\.")
        for logger in loggers:
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield

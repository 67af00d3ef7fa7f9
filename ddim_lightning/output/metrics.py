"""The verb `metrics` measures two folders of videos against each other, whoever made them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from ddim_lightning.data.listing import name_some
from ddim_lightning.metrics.measures import Networks
from ddim_lightning.output.comparison import Comparison
from ddim_lightning.output.measured import CSV, JSON, check_measured, make_result, write_measured
from ddim_lightning.output.pairs import find_pairs
from ddim_lightning.report.console import plain_output, say
from ddim_lightning.report.text import dump_json, make_plain

DONE, SOME_SKIPPED = 0, 3


def tell_metrics(*, comparison: Comparison, networks: Networks) -> NoReturn:
    """Measure, write and print, and exit: with 3 where something could not be compared or measured.

    Raises:
        OSError: What is not there, or an output folder that will not do.
        ValueError: No pair at all.
        SystemExit: Always.
    """
    if comparison.output is not None:
        check_measured(Path(comparison.output))
    with plain_output(comparison.json):
        pairs = find_pairs(comparison.reference, comparison.videos, comparison.masks, comparison.prompts)
        if not pairs.found:
            there, got = name_some(pairs.without_video) or "none", name_some(pairs.without_reference) or "none"
            raise ValueError(f"videos: must have names as in {comparison.reference} ({there}), got {got}")
        from ddim_lightning.output.measuring import load_measures, measure_pair  # which imports torch

        measurer = load_measures(comparison, networks, pairs.found)
        asked = _choose_asked(measurer.missing, comparison, networks)
        told = asked if comparison.quiet else measurer.missing
        for lacks in dict.fromkeys(told.values()):
            say(f"not measured: {', '.join(name for name in told if told[name] == lacks)}: {lacks}")
        rows = []
        for number, pair in enumerate(pairs.found, 1):
            if sys.stderr.isatty() and not comparison.quiet:
                say(f"{number} of {len(pairs.found)}: {pair.name}")
            rows.append(measure_pair(pair, measurer, comparison))
            for sentence in [*rows[-1].problems, *rows[-1].notes]:
                say(f"warning: {pair.name}: {sentence}")
    result = make_result(pairs, rows, measurer.missing, {**asdict(comparison), **asdict(networks)})
    if comparison.output is not None:
        write_measured(result, Path(comparison.output))
    _tell(result, comparison)
    lacking = pairs.without_reference or asked or any(row.problems for row in rows)
    sys.exit(SOME_SKIPPED if lacking else DONE)


def _choose_asked(missing: Mapping[str, str], comparison: Comparison, networks: Networks) -> Mapping[str, str]:
    """Return what is missing of the measures that were asked for, by their names or by that of their network."""
    named = {name for name, place in asdict(networks).items() if place is not None}
    return {name: why for name, why in missing.items() if comparison.metrics or why.partition(":")[0] in named}


def _tell(result: Mapping[str, Any], comparison: Comparison) -> None:
    """Print the table, what has no partner, and where the files are; or all of it as JSON."""
    from ddim_lightning.report.tables import print_measured

    for side, names in result["unpaired"].items():
        if names:
            say(f"without a partner in {'reference' if side == 'videos' else 'videos'}: {name_some(names)}")
    if comparison.json:
        print(dump_json(result))
    elif not comparison.quiet:
        print_measured(result["pairs"], result["means"])
        if comparison.output is not None:
            for name in (JSON, CSV):
                print(make_plain(str(Path(comparison.output, name))))

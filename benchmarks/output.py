"""The two files that a benchmark leaves: the result for programs, the report for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_files(folder: Path | None, result: Mapping[str, Any], report: str) -> None:
    """Write ``result.json`` and ``README.md``; nothing without a folder.

    Args:
        folder: Made where it is missing.
        result: JSON-ready.
        report: Markdown made from it.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(report, encoding="utf-8")

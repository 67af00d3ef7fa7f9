"""The id of a clip names its folder, and one rule says which ids will do, whoever makes them."""

from __future__ import annotations

import re

RESULTS = "results.jsonl"
"""Name of the list of results beside the clips' folders, which no clip may have."""
PAGE = "index.html"
"""Name of the page that shows the results, likewise."""
SUMMARY = "benchmark.json"
"""Name of what a run came to on a public benchmark, in the output folder of one."""
EVALUATION = "evaluation"
"""Name of the folder beside it that the evaluation of the benchmark reads."""

_ID = re.compile(r"\w([\w. -]{0,62}[\w.-])?")
_MOST_BYTES = 240  # file systems take 255; what is left is for the number of a made id
_RULE = (
    "must be a folder name: letters, digits, '_', '.', '-', spaces between them, first no '.' or '-', "
    f"in UTF-8 at most {_MOST_BYTES} bytes, in characters at most 64"
)


def check_id(value: object) -> str:
    """Return an id that can be the name of a folder on every file system.

    Args:
        value: The id.

    Raises:
        ValueError: If it cannot; the message is the rule alone.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value) or len(value.encode()) > _MOST_BYTES:
        raise ValueError(_RULE)
    if value.casefold() in (RESULTS, PAGE):
        raise ValueError(f"must be unique, and a file of the run itself has the name {value.casefold()}")
    return value

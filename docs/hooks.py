"""What MkDocs cannot do by itself: reports and pictures from ``benchmarks/results``, and tables taken from them.

The results stay where the benchmarks write them, so that there is one copy. `on_files` puts their Markdown and their
pictures under ``results/`` of the site, and `on_page_markdown` replaces

    ``<!-- table:FOLDER "HEADING" columns=1,3-5 -->``

by the first table under that heading of ``benchmarks/results/FOLDER/README.md``, or by some of its columns, counted
from 1. Nothing of the results' own format is known here but that it is Markdown.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHOWN = frozenset({".md", ".png"})
"""Suffixes of the files of a result that the site shows."""

MOVED = {
    "../benchmarks/results/": "results/",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
}
"""Where links of the pages lead in the repository, and where on the site."""

MARKER = re.compile(
    r'^(?P<indent> *)<!-- table:(?P<name>[\w-]+) "(?P<heading>[^"]+)"(?: columns=(?P<columns>[\d,-]+))? -->$',
    flags=re.MULTILINE,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reports and pictures of all results to the site, under ``results/``."""
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in SHOWN:
            uri = f"results/{path.relative_to(RESULTS).as_posix()}"
            made = File.generated(config, uri, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(made)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that work in the repository to their places on the site, and fill in the tables that a page asks for.

    Raises:
        PluginError: A result, a heading or a column that is not there.
    """
    for there, here in MOVED.items():
        markdown = markdown.replace(f"]({there}", f"]({here}")
    try:
        return fill_tables(markdown, RESULTS)
    except (OSError, ValueError) as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def fill_tables(text: str, results: Path) -> str:
    """Return a Markdown text with a table in place of each marker.

    Args:
        text: Holds markers or none.
        results: Holds ``FOLDER/README.md`` for each marker.

    Raises:
        OSError: A result that is not there.
        ValueError: A marker that cannot be read, a heading without a table, or a column that a table does not have.
    """

    def fill(match: re.Match[str]) -> str:
        report = (results / match["name"] / "README.md").read_text(encoding="utf-8")
        table = find_table(report, match["heading"])
        if match["columns"]:
            table = [_pick(line, parse_columns(match["columns"])) for line in table]
        return "\n".join(match["indent"] + line for line in table)

    filled = MARKER.sub(fill, text)
    if "<!-- table:" in filled:
        raise ValueError(
            'table: a marker must stand alone on its line, as <!-- table:FOLDER "HEADING" columns=1,3-5 -->'
        )
    return filled


def find_table(report: str, heading: str) -> list[str]:
    """Return the lines of the first table under a heading.

    Args:
        report: Markdown.
        heading: The text of the heading, of any level.

    Raises:
        ValueError: No such heading, or no table before the next one.
    """
    lines = report.splitlines()
    starts = [k for k, line in enumerate(lines) if re.fullmatch(r"#+ +" + re.escape(heading), line.strip())]
    if not starts:
        raise ValueError(f"table: must stand under a heading of the report, which has no {heading!r}")
    table: list[str] = []
    for line in lines[starts[0] + 1 :]:
        if line.startswith("|"):
            table.append(line)
        elif table or line.startswith("#"):
            break
    if not table:
        raise ValueError(f"table: the report has none under {heading!r}")
    return table


def parse_columns(text: str) -> list[int]:
    """Return the columns, counted from 1, that ``1,3-5`` means."""
    columns: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        columns += range(int(first), int(last or first) + 1)
    return columns


def _pick(line: str, columns: list[int]) -> str:
    cells = line.strip().strip("|").split("|")
    if max(columns) > len(cells):
        raise ValueError(f"columns: must be at most {len(cells)}, got {max(columns)}")
    return "|" + "|".join(cells[column - 1] for column in columns) + "|"

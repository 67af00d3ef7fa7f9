"""A card is what a page shows of a clip: its videos, its numbers, and what each run made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ddim_lightning.report.benchmark_table import BenchmarkTable
from ddim_lightning.report.numbers import STAGES, TOTAL, get_level_errors, list_numbers, order_keys
from ddim_lightning.report.plot import Plot, make_plot
from ddim_lightning.report.settings import find_common, flatten

_SOURCE = "Source"
_BY_STAGE = {"nfe": "NFE", "seconds": "Seconds", "peak_gib": "Peak GiB"}
Record = Mapping[str, Any]
Link = Callable[[str, str], str | None]
"""Gives the address of a file by the id of its clip and its name; ``None`` if it has none."""


@dataclass(frozen=True)
class ReportedRun:
    """A `ReportedRun` is one run as a page shows it.

    Args:
        name: What it is called.
        records: As in ``results.jsonl``.
        video: Where videos are, or themselves as data URLs.
        link: Where files are.
        benchmark: What it came to on a public benchmark; ``None`` where it was none.
    """

    name: str
    records: Sequence[Record]
    video: Link
    link: Link
    benchmark: BenchmarkTable | None = None


@dataclass(frozen=True)
class Tile:
    """A `Tile` is one video of a card.

    Args:
        run: Position of the run that made it.
        title: What it is.
        text: The prompt.
        video: The address of the video; ``None`` where it is not there.
        link: The address of its file, likewise.
        measures: Its numbers by their keys.
        under: Position, among the tiles of the card, of the video that the split shows beside it: the same of the first
            run where two are compared, or else the source; ``None`` for a source.
    """

    run: int
    title: str
    text: str
    video: str | None
    link: str | None
    measures: dict[str, float]
    under: int | None = None


@dataclass(frozen=True)
class Side:
    """A `Side` is what one run made of a clip.

    Args:
        run: Position of the run.
        record: As in ``result.json``.
        numbers: All of its numbers; see `list_numbers`.
        settings: Those that not all clips of the run share.
        files: Addresses of its other files, by what they are.
    """

    run: int
    record: Record
    numbers: dict[str, float]
    settings: dict[str, str]
    files: dict[str, str]

    @property
    def parts(self) -> dict[str, str]:
        """What it has numbers of by stage, with the titles; memory is not measured on every device."""
        return {part: title for part, title in _BY_STAGE.items() if f"{part}.{TOTAL}" in self.numbers}

    @property
    def stages(self) -> list[str]:
        """The stages it has numbers of."""
        return [stage for stage in STAGES if any(f"{part}.{stage}" in self.numbers for part in _BY_STAGE)]

    @property
    def notes(self) -> list[str]:
        """What is off in its inversion, and what the user is warned of."""
        return [str(note) for note in [*_get(self.record, "diagnosis").get("problems", []), *self.record["warnings"]]]


@dataclass(frozen=True)
class Card:
    """A `Card` is a clip with what each run made of it.

    Args:
        id: The clip.
        sides: One or two.
        tiles: Its videos; those of two runs that are to be compared are next to each other.
        plot: The error by level; ``None`` where no run has it.
    """

    id: str
    sides: list[Side]
    tiles: list[Tile]
    plot: Plot | None

    @property
    def count(self) -> int:
        """Frames of its videos, those of the run that has most."""
        return int(max(side.numbers.get("frames.count", 1) for side in self.sides))

    @property
    def fps(self) -> float:
        """Their rate."""
        return self.sides[0].numbers.get("fps", 8.0)

    @property
    def text(self) -> str:
        """What a reader may look for."""
        return " ".join([self.id, *(tile.text for tile in self.tiles)]).casefold()

    def get_side(self, run: int) -> Side | None:
        """Return what a run made of the clip, if it did."""
        return next((side for side in self.sides if side.run == run), None)


def make_cards(runs: Sequence[ReportedRun]) -> list[Card]:
    """Make the cards of all clips that a run has done, sorted by id; clips of two runs are paired by their ids."""
    clips: dict[str, list[Side]] = {}
    for index, run in enumerate(runs):
        records = [record for record in run.records if record["status"] == "done"]
        settings = [flatten(record.get("settings")) for record in records]
        shared = {*find_common(settings), "source_prompt"}  # which is shown with the source
        for record, flat in zip(records, settings, strict=True):
            own = {name: value for name, value in flat.items() if name not in shared}
            side = Side(index, record, list_numbers(record), own, _link_files(run, record))
            clips.setdefault(str(record["id"]), []).append(side)
    names = ["A", "B"] if len(runs) > 1 else [""]
    return [
        Card(
            clip,
            sides,
            _arrange([tile for side in sides for tile in _make_tiles(runs[side.run], side)], sides),
            make_plot({names[side.run]: get_level_errors(side.record) for side in sides}),
        )
        for clip, sides in sorted(clips.items())
    ]


def _link_files(run: ReportedRun, record: Record) -> dict[str, str]:
    """Link to what is no video, by what it is."""
    files = {"result.json": "result.json", "contact sheet": record["files"].get("sheet")}
    files["trajectory"] = record["files"].get("trajectory")
    links = {what: run.link(str(record["id"]), file) for what, file in files.items() if isinstance(file, str)}
    return {what: link for what, link in links.items() if link is not None}


def _make_tiles(run: ReportedRun, side: Side) -> list[Tile]:
    record, files = side.record, side.record["files"]
    prompts, edits = record.get("prompts", []), files.get("edits", [])
    found = [
        (_SOURCE, _get(record, "settings").get("source_prompt"), files.get("source"), "vae"),
        ("Reconstruction", "", files.get("reconstruction"), "reconstruction"),
        *((f"Edit {k:02d}", dict(enumerate(prompts)).get(k), file, f"edits.{k}") for k, file in enumerate(edits)),
    ]
    clip, tiles = str(record["id"]), []
    for title, text, file, part in found:
        if isinstance(file, str):
            keys = order_keys([key for key in side.numbers if key.startswith(f"metrics.{part}.")])
            measures = {key: side.numbers[key] for key in keys}
            tiles.append(Tile(side.run, title, str(text or ""), run.video(clip, file), run.link(clip, file), measures))
    return tiles


def _arrange(tiles: Sequence[Tile], sides: Sequence[Side]) -> list[Tile]:
    """Put the tiles of two runs next to each other, the source once where it is the same, and find what lies under."""
    same = len(sides) > 1 and _get_frames(sides[0].record) == _get_frames(sides[1].record) is not None
    kept = [tile for tile in tiles if not (same and tile.run and tile.title == _SOURCE)]
    titles = [*dict.fromkeys(tile.title for tile in sorted(kept, key=lambda tile: tile.title.startswith("Edit")))]
    kept.sort(key=lambda tile: (titles.index(tile.title), tile.run))
    places = {(tile.run, tile.title): place for place, tile in enumerate(kept)}

    def find_under(tile: Tile) -> int | None:
        wanted = [(0, tile.title)] if tile.run else []
        wanted += [(tile.run, _SOURCE), (0, _SOURCE)]
        return next((places[one] for one in wanted if one in places), None) if tile.title != _SOURCE else None

    return [replace(tile, under=find_under(tile)) for tile in kept]


def _get_frames(record: Record) -> object:
    """The fingerprint of the frames that the model saw, where there is one."""
    return _get(record, "fingerprint").get("clip")


def _get(record: Record, name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}

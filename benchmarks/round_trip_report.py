"""The report of `round_trip` is made: a row for each method, a row for each clip, and sheets of what came back."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ddim_lightning.data.video import read_clip, read_info
from ddim_lightning.limits import VideoLimits
from ddim_lightning.report.sheet import Row, write_sheet

from .coming_back import RESIDUAL, WITHOUT
from .edit_report import make_table
from .inversion_report import pool_errors, tell_nfe, to_decibels
from .inversion_variants import Variant
from .output import tell_origin, tell_place

SCHEMA = "ddim-lightning/round-trip/2"
SOURCE, VAE = "source", "VAE round trip"
WASHOUT = "washout.png"
"""Name of a sheet: the source, the VAE's ceiling, and what every method brings back."""
Clips = Sequence[tuple[str, Mapping[str, Any], Mapping[str, Mapping[str, Any] | None]]]
"""Of each clip its id, the record of the VAE, and the records by method; ``None`` where there is none yet."""

_LEGEND = (
    "PSNR in dB of unquantized values: against the VAE round trip, where a perfect way back ends; against the source.",
    "First that of one mean squared error over all clips, with its interval (95 %, clips resampled).",
    "*mean* is that of the clips' own, *worst* the worst clip. Rows of unequal numbers of clips do not compare.",
    "Nothing but x_T, the inverter's own state and, where a row says so, the kept residual reaches the way back.",
    "*NFE* of the inversion (with the residual's where it is used) and of the way back.",
    "The reference script evaluates two equal rows in each step of its inversion: the same numbers for twice the NFE.",
    "*saturation* is that of the videos, *x_T* is its deviation, 1 for noise.",
    "Seconds of the inversion and of the way back, the clips' median, without the VAE; GiB, the most of any clip.",
)


def name_video(name: str) -> str:
    """Return the name of a file without its suffix: ``ddim-50-steps``."""
    return name.lower().replace(",", "").replace(" ", "-")


def summarize(methods: Sequence[Variant], clips: Clips) -> dict[str, Any]:
    """Make the tables of a result, infinity where there is no error.

    Args:
        methods: In the order of the table.
        clips: In the order of the table.
    """
    own = [_describe_clip(methods, clip, source, records) for clip, source, records in clips]
    return {
        "vae": pool(clip["vae_error"] for clip in own) if own else None,
        "rows": [row for method in methods for end in (WITHOUT, RESIDUAL) for row in _summarize(method, end, own)],
        "washout_clip": _find_typical_clip(methods[0].name, own),
        "by_clip": own,
    }


def pool(errors: Any) -> dict[str, float]:
    """Return decibels of clips' mean squared errors: of the pooled error, its interval, the worst, and their mean."""
    errors = [*errors]
    return {**pool_errors([[error] for error in errors]), "mean": statistics.fmean(map(to_decibels, errors))}


def _describe_clip(
    methods: Sequence[Variant],
    clip: str,
    source: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, Any]:
    rows = [
        _describe_end(method.name, end, record)
        for method in methods
        if (record := records[method.name]) is not None
        for end in (WITHOUT, RESIDUAL)
        if end in record["back"][0]
    ]
    told = {name: source[name] for name in ("frames", "fps", "warnings")}
    saturation = source["source"]["saturation"]
    return {"id": clip, **told, "vae_error": source["squared_error"], "saturation": saturation, "rows": rows}


def _describe_end(name: str, end: str, record: Mapping[str, Any]) -> dict[str, Any]:
    (back,) = record["back"]
    unused = int(end == WITHOUT and RESIDUAL in back)  # the residual's evaluation
    memory = [
        value
        for stage in (record, back)
        for value in [stage["memory"].get("peak_gib", stage["memory"].get("resident_gib"))]
        if value is not None
    ]
    return {
        "name": name,
        "residual": end == RESIDUAL,
        "error": back[end]["squared_error"],
        "error_to_source": back[end]["squared_error_to_source"],
        "saturation": back[end]["saturation"],
        "noise_std": record["noise"]["std"],
        "inversion_nfe": record["nfe"] - unused,
        "reconstruction_nfe": back["nfe"],
        "inversion_s": record["seconds"],
        "reconstruction_s": back["seconds"],
        "gib": max(memory, default=None),
    }


def _summarize(method: Variant, end: str, clips: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make the row of a method, or none where no clip has it."""
    wanted = (method.name, end == RESIDUAL)
    rows = [row for clip in clips for row in clip["rows"] if (row["name"], row["residual"]) == wanted]
    if not rows:
        return []
    nfe, gib = [row["inversion_nfe"] for row in rows], [row["gib"] for row in rows if row["gib"] is not None]
    return [
        {
            "name": method.name,
            "inverter": repr(method.inverter),
            "steps": method.steps,
            "residual": end == RESIDUAL,
            "clips": len(rows),
            "inversion_nfe": round(statistics.fmean(nfe)),
            "most_inversion_nfe": max(nfe),
            "reconstruction_nfe": rows[0]["reconstruction_nfe"],
            "to_vae": pool(row["error"] for row in rows),
            "to_source": pool(row["error_to_source"] for row in rows),
            **{name: statistics.fmean(row[name] for row in rows) for name in ("saturation", "noise_std")},
            **{name: statistics.median(row[name] for row in rows) for name in ("inversion_s", "reconstruction_s")},
            "gib": max(gib, default=None),
        }
    ]


def _find_typical_clip(plain: str, clips: Sequence[Mapping[str, Any]]) -> str | None:
    """Find the clip on which plain DDIM inversion has its median error; ``None`` before it was measured."""
    errors = {clip["id"]: row["error"] for clip in clips for row in clip["rows"] if row["name"] == plain}
    return sorted(errors, key=errors.__getitem__)[len(errors) // 2] if errors else None


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings, clips = result["settings"], result["by_clip"]
    size = f"{settings['height']} x {settings['width']}, fit {settings['fit']}"
    where = f"{tell_place(result)}, offload {settings['offload']}, attention {settings['attention']}"
    lines = [
        "# Round trips of clips",
        "",
        tell_origin(result),
        "",
        f"Clips: {settings['clips']}, at {size}; model {settings['model']} on {where}.",
        "Trailing steps, float32 latents, empty prompt both ways, guidance 1.",
        f"Seconds are {settings['clock']}. GiB are {settings['memory']}.",
        "",
    ]
    if settings["model"] == "tiny":
        lines += ["This is the bundled tiny model, which knows moving shapes alone: it says nothing of CogVideoX.", ""]
    lines += [*(f"- {line}" for line in _LEGEND), "", "## By method", ""]
    lines += _make_method_table(result)
    if result["washout_clip"] is not None:
        told = "on which plain DDIM inversion has its median error"
        lines += ["", f"## Clip {_plain(result['washout_clip'])}, {told}", "", f"![What comes back]({WASHOUT})"]
    if clips:
        lines += ["", "## By clip", "", "PSNR against the VAE round trip; where a residual is kept, with it.", ""]
        lines += _make_clip_table(result)
    if result["skipped"]:
        lines += [
            "",
            "## Skipped",
            "",
            *(f"- {_plain(one['id'])}: {_plain(one['reason'])}" for one in result["skipped"]),
        ]
    return "\n".join(lines) + "\n"


def _make_method_table(result: Mapping[str, Any]) -> list[str]:
    head = (
        *("method", "residual", "clips", "NFE", "dB to VAE", "mean", "worst", "dB to source", "mean", "worst"),
        *("saturation", "x_T", "seconds", "GiB"),
    )
    rows: list[Sequence[str]] = []
    if result["vae"] is not None:
        clips = result["by_clip"]
        saturation = statistics.fmean(clip["saturation"] for clip in clips)
        rows.append((SOURCE, "", str(len(clips)), *[""] * 7, f"{saturation:.3f}", "", "", ""))
        rows.append((VAE, "", str(len(clips)), "", "", "", "", *_tell_pooled(result["vae"]), "", "", "", ""))
    rows += [
        (
            row["name"],
            "kept" if row["residual"] else "",
            str(row["clips"]),
            f"{tell_nfe(row)} + {row['reconstruction_nfe']}",
            *_tell_pooled(row["to_vae"]),
            *_tell_pooled(row["to_source"]),
            f"{row['saturation']:.3f}",
            f"{row['noise_std']:.3f}",
            f"{row['inversion_s']:.2f} + {row['reconstruction_s']:.2f}",
            "" if row["gib"] is None else f"{row['gib']:.2f}",
        )
        for row in result["rows"]
    ]
    return make_table(head, rows)


def _make_clip_table(result: Mapping[str, Any]) -> list[str]:
    names = [*dict.fromkeys(row["name"] for row in result["rows"])]
    rows = []
    for clip in result["by_clip"]:
        last = {row["name"]: row["error"] for row in clip["rows"]}  # that with the residual comes second
        rows.append(
            (
                _plain(clip["id"]),
                str(clip["frames"]),
                _tell(to_decibels(clip["vae_error"])),
                *(_tell(to_decibels(last[name])) if name in last else "" for name in names),
            )
        )
    return make_table(("clip", "frames", "VAE to source", *names), rows)


def _tell_pooled(psnr: Mapping[str, float | None]) -> tuple[str, str, str]:
    spread = f"{_tell(psnr['db'])} ({_tell(psnr['low'])} .. {_tell(psnr['high'])})"
    return spread, _tell(psnr["mean"]), _tell(psnr["worst"])


def _tell(decibels: float | None) -> str:
    """JSON has null where there is no error."""
    return "equal" if decibels is None or math.isinf(decibels) else f"{decibels:.1f}"


def _plain(text: str) -> str:
    """A text from outside, as Markdown tables take it."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw the sheet of the typical clip from its videos; where these are not, the sheet that is there stays."""
    if result["washout_clip"] is not None:
        write_clip_sheet(folder / "clips" / result["washout_clip"], folder / WASHOUT, result)


def write_clip_sheet(place: Path, path: Path, result: Mapping[str, Any]) -> None:
    """Draw the sheet of a clip from its videos; nothing where there are none.

    Args:
        place: The folder of its videos, named after it.
        path: The sheet.
        result: Holds its numbers.
    """
    clip = next((clip for clip in result["by_clip"] if clip["id"] == place.name), None)
    if clip is None or not (place / f"{name_video(SOURCE)}.mp4").exists():
        return
    told = {SOURCE: "", VAE: f"{_tell(to_decibels(clip['vae_error']))} dB to the source"}
    notes = {SOURCE: f"saturation {clip['saturation']:.2f}"}
    for row in clip["rows"]:
        residual = ", residual kept" if row["residual"] else ""
        told[row["name"]] = f"{_tell(to_decibels(row['error']))} dB to the VAE round trip{residual}"
        notes[row["name"]] = f"saturation {row['saturation']:.2f}, deviation of x_T {row['noise_std']:.2f}"
    videos = {name: file for name in told if (file := place / f"{name_video(name)}.mp4").exists()}
    info = read_info(videos[SOURCE])
    limits = VideoLimits(sys.maxsize, info.height, info.width, multiple=1, temporal=1)
    frames = {name: read_clip(file, limits=limits)[0] for name, file in videos.items()}
    write_sheet(
        path,
        [Row(name, frames[name], told[name], notes.get(name, "")) for name in videos],
        title=f"{clip['id']}: what comes back from noise, by inversion method",
        subtitle="Empty prompt both ways, guidance 1; lossy videos are shown, decibels are of what was decoded",
        fps=Fraction(clip["fps"]),
    )

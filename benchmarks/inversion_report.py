"""The report of `inversion_error` is written: the result file, its summary and the error by level."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .coming_back import RESIDUAL, WITHOUT
from .environment import read_block
from .inversion_variants import DEEP, DEFAULT, OURS, PLAIN, Variant
from .output import tell_origin
from .plots import Line, plot_levels
from .records import dump_json, mean_interval, merge_records

SCHEMA = "ddim-lightning/inversion-error/2"
Rows = Mapping[str, Mapping[str, Any]]
"""Records by key."""

_DASHES = {"UniInv as published": "--", DEEP: ":", "UniInv, source prompt": "-."}
"""Lines of a method that has a plainer one beside it."""


def make_source_key(clip: int) -> str:
    """Name the record of a clip itself."""
    return f"{clip:03d}/source"


def write_report(
    folder: Path, settings: Mapping[str, Any], variants: Sequence[Variant], clips: int, commit: str | None
) -> str:
    """Write ``result.json``, ``README.md`` and ``per_level.png`` from the records of a folder.

    Args:
        folder: Holds the records.
        settings: What the records were measured with.
        variants: What was asked for of every clip.
        clips: How many clips were asked for.
        commit: The commit measured, where the code is no checkout.

    Returns:
        The summary, Markdown.

    Raises:
        ValueError: The records are of other settings, or of no clip complete.
    """
    rows = merge_records(folder, settings)
    complete = find_complete_clips(rows, variants, clips)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "environment": read_block(commit),
        "settings": {**settings, "clips": len(complete), "missing": clips - len(complete)},
        "source": summarize_source([rows[make_source_key(clip)] for clip in complete]),
        "washout_clip": find_typical_clip(rows, variants, clips),
        "rows": [row for variant in variants for row in summarize_variant(rows, variant, complete)],
    }
    (folder / "result.json").write_text(dump_json(result, indent=2) + "\n", encoding="utf-8")
    write_plots(folder, result)
    summary = make_markdown(result)
    (folder / "README.md").write_text(summary, encoding="utf-8")
    return summary


def find_complete_clips(rows: Rows, variants: Sequence[Variant], clips: int) -> list[int]:
    """List the clips of which nothing is missing.

    Raises:
        ValueError: There is none.
    """

    def list_keys(clip: int) -> list[str]:
        return [variant.make_key(clip, seed) for variant in variants for seed in variant.seeds] + [
            make_source_key(clip)
        ]

    complete = [clip for clip in range(clips) if all(key in rows for key in list_keys(clip))]
    if not complete:
        raise ValueError(f"records: must hold at least one clip complete, got {len(rows)} rows and none")
    return complete


def find_typical_clip(rows: Rows, variants: Sequence[Variant], clips: int) -> int:
    """Find the clip on which plain DDIM inversion has its median error."""
    plain = next(variant for variant in variants if (variant.name, variant.factor) == (PLAIN, DEFAULT))
    errors = {
        clip: rows[plain.make_key(clip, 0)]["back"][0][WITHOUT]["squared_error"]
        for clip in find_complete_clips(rows, variants, clips)
    }
    return sorted(errors, key=errors.__getitem__)[len(errors) // 2]


def summarize_source(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the VAE alone does to the clips."""
    return {
        "vae_psnr": pool_errors([[row["squared_error"]] for row in rows]),
        "source": _average([row["source"] for row in rows]),
        "round_trip": _average([row["round_trip"] for row in rows]),
    }


def summarize_variant(rows: Rows, variant: Variant, clips: Sequence[int]) -> list[dict[str, Any]]:
    """Return the table's rows of a variant: one for each way back, without and with the residual."""
    by_clip = [[rows[variant.make_key(clip, seed)] for seed in variant.seeds] for clip in clips]
    return [
        _summarize_way_back(variant, by_clip, position, end)
        for position, back in enumerate(by_clip[0][0]["back"])
        for end in (WITHOUT, RESIDUAL)
        if end in back
    ]


def _summarize_way_back(
    variant: Variant, by_clip: Sequence[Sequence[Mapping[str, Any]]], position: int, end: str
) -> dict[str, Any]:
    records = [record for of_clip in by_clip for record in of_clip]
    backs = [record["back"][position] for record in records]
    ends = [back[end] for back in backs]
    scale = variant.guidance_scales[position]
    # What is reported without the residual did not need its evaluation.
    unused = int(end == WITHOUT and RESIDUAL in backs[0])
    by_level = zip(*(back["level_errors"] for back in backs), strict=True)
    return {
        "name": variant.name,
        "factor": variant.factor if scale == 1.0 else f"guidance {scale:g} back, source prompt",
        "inverter": repr(variant.inverter),
        "steps": variant.steps,
        "spacing": variant.spacing,
        "source_prompt": variant.source_prompt,
        "guidance_scale": scale,
        "residual": end == RESIDUAL,
        "seeds": len(variant.seeds),
        "inversion_nfe": round(statistics.fmean(record["nfe"] for record in records)) - unused,
        "most_inversion_nfe": max(record["nfe"] for record in records) - unused,
        "reconstruction_nfe": backs[0]["nfe"],
        "psnr": pool_errors([[r["back"][position][end]["squared_error"] for r in of_clip] for of_clip in by_clip]),
        "relative_l2": statistics.fmean(row["relative_l2"] for row in ends),
        "noise": _average([record["noise"] for record in records]),
        "color": _average([{name: row[name] for name in ("saturation", "brightness")} for row in ends]),
        "inversion_s": statistics.median(record["seconds"] for record in records),
        "reconstruction_s": statistics.median(back["seconds"] for back in backs),
        "angles": records[0]["angles"],
        "level_errors": [statistics.fmean(errors) for errors in by_level],
    }


def pool_errors(errors: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return decibels from one mean squared error over all clips, its interval and the worst clip.

    Args:
        errors: Mean squared errors of values in 0 .. 1, clip by clip and seed by seed.

    Returns:
        ``db``, ``low`` and ``high`` (95 %, clips resampled) and ``worst``; infinity where there is no error.
    """
    mean, low, high = mean_interval([statistics.fmean(of_clip) for of_clip in errors])
    worst = max(error for of_clip in errors for error in of_clip)
    # The largest error is the lowest PSNR.
    names = {"db": mean, "low": high, "high": low, "worst": worst}
    return {name: to_decibels(error) for name, error in names.items()}


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Plot the error by level of every inverter at the default setting, and of ours under the source prompt."""
    rows = result["rows"]
    names = {(DEFAULT, row["name"]): row["name"] for row in rows}
    names["source prompt", OURS] = f"{OURS}, source prompt"
    lines = [
        Line(name, [math.degrees(angle) for angle in row["angles"]], row["level_errors"], _DASHES.get(name, "-"))
        for row in rows
        if not row["residual"] and (name := names.get((row["factor"], row["name"])))
    ]
    plot_levels(
        folder / "per_level.png",
        lines,
        title="How far the reconstruction is from the inversion, before any residual is added",
        x_label="noise level (degrees; 90 is noise, 0 is clean)",
        y_label="relative root mean squared error",
    )


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the summary a person reads."""
    settings, source, rows = result["settings"], result["source"], result["rows"]
    left_out = f"; {settings['missing']} more are not complete and left out" if settings["missing"] else ""
    default = [row for row in rows if row["factor"] == DEFAULT]
    other = sorted((row for row in rows if row["factor"] != DEFAULT), key=lambda row: float(row["guidance_scale"]))
    lines = [
        "# Round trips, measured",
        "",
        tell_origin(result),
        "",
        f"{settings['clips']} held-out clips{left_out}; model {settings['model']}, seed {settings['seed']}.",
        f"Default setting: {default[0]['steps']} trailing steps, float32 latents, empty prompt both ways, guidance 1.",
        "",
        *(f"- {line}" for line in _LEGEND),
        "",
        "| | PSNR against the source | worst | saturation | brightness |",
        "|---|---|---|---|---|",
        f"| source | | | {_tell_color(source['source'])} |",
        f"| VAE round trip | {_tell_psnr(source['vae_psnr'])} | {_tell_color(source['round_trip'])} |",
        "",
        "## Every inverter at the default setting",
        "",
        *_make_table(("inverter",), [[row["name"], *_list_numbers(row)] for row in default]),
        "",
        "![Error by level](per_level.png)",
        "",
        "## One factor at a time",
        "",
        *_make_table(("factor", "inverter"), [[row["factor"], row["name"], *_list_numbers(row)] for row in other]),
        "",
        f"## Clip {result['washout_clip']}, on which plain DDIM inversion has its median error",
        "",
        "![Source, VAE round trip, plain DDIM, the default](washout.png)",
    ]
    return "\n".join(lines) + "\n"


_LEGEND = (
    "PSNR in dB against the VAE round trip, from one mean squared error over all unquantized values of all clips.",
    "Its interval (95 %) resamples the clips; *worst* is the worst clip.",
    "Nothing but x_T, the inverter's own state and, where a row says so, the kept residual reaches the reconstruction.",
    "*NFE* of the inversion (with the residual's where it is used) and of the reconstruction.",
    "*next to clean* and *latents* are relative L2 errors: before the last step back, and of what is reconstructed.",
    "x_T of Gaussian noise has mean 0, deviation 1 and no correlation of neighbors (frames, height, width).",
    "Seconds are one thread's processor time, inversion and reconstruction, the clips' median, without the VAE.",
)
_HEAD = (
    *("residual", "NFE", "PSNR", "worst", "next to clean", "latents"),
    *("x_T mean", "deviation", "correlation f / h / w", "saturation", "brightness", "seconds"),
)


def _make_table(first: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = (*first, *_HEAD)
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _list_numbers(row: Mapping[str, Any]) -> list[str]:
    noise = row["noise"]
    correlations = [noise.get(f"correlation_{axis}") for axis in "fhw"]
    return [
        "kept" if row["residual"] else "",
        f"{tell_nfe(row)} + {row['reconstruction_nfe']}",
        _tell_psnr(row["psnr"]),
        f"{row['level_errors'][-2]:.1e}",
        f"{row['relative_l2']:.1e}",
        f"{noise['mean']:.3f}",
        f"{noise['std']:.3f}",
        " / ".join("" if value is None else f"{value:.3f}" for value in correlations),
        _tell_color(row["color"]),
        f"{row['inversion_s']:.2f} + {row['reconstruction_s']:.2f}",
    ]


def tell_nfe(row: Mapping[str, Any]) -> str:
    """Return the NFE of the inversion: the mean of the clips and, for a method that may stop early, the most."""
    mean, most = row["inversion_nfe"], row["most_inversion_nfe"]
    return f"{mean}" if mean == most else f"{mean}, at most {most}"


def _tell_psnr(psnr: Mapping[str, float]) -> str:
    return f"{psnr['db']:.1f} ({psnr['low']:.1f} .. {psnr['high']:.1f}) | {psnr['worst']:.1f}"


def _tell_color(color: Mapping[str, float]) -> str:
    return f"{color['saturation']:.3f} | {color['brightness']:.3f}"


def _average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def to_decibels(error: float) -> float:
    """Return the PSNR of a mean squared error of values in 0 .. 1; infinity where there is none."""
    return math.inf if error == 0 else -10 * math.log10(error)

"""The numbers of a record have keys, names for a person, and a way to be rounded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

STAGES = ("encode", "invert", "reconstruct", "edit", "decode", "measure")
TOTAL = "total"
"""Ends the keys of what is summed up over stages; of ``peak_gib`` it is the largest."""
_PARTS = ("metrics", "diagnosis", "nfe", "seconds", "peak_gib", "frames", "windows")
_GROUPS = {
    "metrics": "Quality",
    "diagnosis": "Diagnosis",
    "nfe": "Network evaluations (NFE)",
    "seconds": "Seconds",
    "peak_gib": "Peak memory (GiB)",
}
_VIDEOS = {"vae": "VAE round trip", "reconstruction": "Reconstruction"}
_MEASURES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "mse": "MSE",
    "clip": "CLIP",
    "vae": "VAE",
    "std": "deviation",
}
_DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4, "clip": 2, "clip_frames": 4, "flow": 4, "motion": 4}
_DECIMALS |= {"seconds": 2, "peak_gib": 2}
"""Of what has such a name, or begins with it; all else has four digits that count."""


@dataclass(frozen=True)
class Number:
    """A `Number` is one column of numbers, as a person reads it.

    Args:
        key: Where it stands in a record, with dots: ``metrics.edits.0.psnr_vs_source``.
        group: What kind of number it is.
        of: What it is a number of, ``Edit 00`` for example.
        measure: What is measured, ``PSNR to source`` for example.
        unit: Its unit, or nothing.
    """

    key: str
    group: str
    of: str
    measure: str
    unit: str = ""

    @property
    def name(self) -> str:
        """What it is and of what, in one line."""
        return f"{self.of}, {self.measure}" if self.of and self.measure else self.of or self.measure


def list_measured(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the names of all ``numbers`` that rows have, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row["numbers"]))


def list_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """List all numbers of a record by their keys, and what they come to over stages and levels.

    Args:
        record: As in ``result.json``, of any version; what is not there, or no number, is left out.

    Returns:
        The numbers. A measure that JSON has as null is infinite, as the PSNR of equal videos is.
    """
    parts = {part: record[part] for part in _PARTS if isinstance(record.get(part), Mapping)}
    numbers = {key: number for part, values in parts.items() for key, number in _walk(values, part)}
    for part, sum_up in (("nfe", sum), ("seconds", sum), ("peak_gib", max)):
        if by_stage := [number for key, number in numbers.items() if key.startswith(f"{part}.")]:
            numbers[f"{part}.{TOTAL}"] = sum_up(by_stage)
    if errors := get_level_errors(record):
        numbers["diagnosis.level_errors"] = max(errors)
    if isinstance(fps := record.get("fps"), str):
        numbers["fps"] = float(Fraction(fps))
    return numbers


def get_level_errors(record: Mapping[str, Any]) -> list[float]:
    """Return the relative error of the way back by level, noise first; empty where a record has none."""
    diagnosis = record.get("diagnosis")
    errors = diagnosis.get("level_errors") if isinstance(diagnosis, Mapping) else None
    if not isinstance(errors, list) or not all(_is_number(error) and math.isfinite(error) for error in errors):
        return []
    return list(errors)


def describe_number(key: str) -> Number:
    """Name the number with a key of `list_numbers`."""
    part, *rest = key.split(".")
    group, last = _GROUPS.get(part, "Clip"), rest[-1] if rest else part
    if part == "metrics":
        of = f"Edit {int(rest[1]):02d}" if rest[0] == "edits" else _VIDEOS.get(rest[0], rest[0])
        return Number(key, group, of, name_measure(last), "dB" if "psnr" in last else "")
    if part in ("nfe", "seconds", "peak_gib"):
        unit = {"nfe": "", "seconds": "s", "peak_gib": "GiB"}[part]
        of = ("all stages" if part != "peak_gib" else "largest") if last == TOTAL else last
        return Number(key, group, of, {"nfe": "NFE", "seconds": "seconds", "peak_gib": "peak"}[part], unit)
    if key == "diagnosis.level_errors":
        return Number(key, group, "Round trip", "largest error of a level")
    return Number(key, group, " ".join(rest[:-1]) if rest else "", name_measure(last))


def format_number(number: float | None, key: str) -> str:
    """Round a number for a person.

    Args:
        number: The number; ``None`` is one that is not there, and infinity the PSNR of equal videos.
        key: As in `list_numbers`.
    """
    if number is None:
        return "-"
    if not math.isfinite(number):
        return "equal"
    if abs(number) >= 1e9:
        return f"{number:.4g}"
    part, _, rest = key.partition(".")
    name = rest.rpartition(".")[2] if part == "metrics" else part
    if known := [start for start in _DECIMALS if f"{name}_".startswith(f"{start}_")]:
        return f"{number:,.{_DECIMALS[max(known, key=len)]}f}"
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"


def order_keys(keys: Sequence[str]) -> list[str]:
    """Order keys as a person looks for them: quality first, stages as they follow each other, what is rare last."""
    parts = [*_PARTS, "fps"]

    def rank(key: str) -> tuple[Any, ...]:
        part, _, rest = key.partition(".")
        stage = [TOTAL, *STAGES].index(rest) if rest in (TOTAL, *STAGES) else len(STAGES) + 1
        edit = int(rest.split(".")[1]) if rest.startswith("edits.") else -1
        video = ["vae", "reconstruction", "edits"].index(first) if (first := rest.split(".")[0]) in _VIDEOS else 3
        return (parts.index(part), stage, video, edit)

    return sorted(dict.fromkeys(keys), key=rank)


def _walk(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _walk(one, f"{key}.{name}")
    elif key == "metrics.edits" and isinstance(value, list):
        for index, one in enumerate(value):
            yield from _walk(one, f"{key}.{index}")
    elif _is_number(value):
        yield key, value
    elif value is None and key.startswith("metrics."):
        yield key, math.inf


def name_measure(name: str) -> str:
    """``PSNR to source`` for ``psnr_vs_source``."""
    words = name.replace("_vs_", "_to_").split("_")
    return " ".join(_MEASURES.get(word, word) for word in words)


def _is_number(value: object) -> bool:
    """Whether it is a number that a page can show; NaN and minus infinity, which no record of ours has, are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value == math.inf or math.isfinite(value)

"""The benchmark takes memory by stage for every offload preset, and says whether the outputs are the same bytes.

Each preset has a process of its own: what one has touched would count for the next. On a GPU a stage is told by what is
allocated and reserved at its end, by its peak, and by what the driver says is taken of the whole device, other programs
included; on a CPU by the resident set of the process at its end.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ddim_lightning.engine.config import Offload
from ddim_lightning.runtime.timing import StageTimer, read_memory_gib

from .arguments import add_attention, add_steps, make_parser
from .deadline import Deadline
from .edit_report import make_table
from .environment import read_block, tell_command
from .loading import EDITOR, FULL_SIZE, name_model
from .output import tell_left_out, tell_origin, tell_place, write_growing
from .plots import Bars, plot_bars
from .stages import STAGES, Job, run_fresh

SCHEMA = "ddim-lightning/memory/2"
KINDS = {
    "peak_gib": "peak of what is allocated",
    "allocated_gib": "allocated at the end",
    "reserved_gib": "reserved at the end",
    "device_gib": "taken of the device, says the driver",
    "resident_gib": "resident set at the end",
}
"""What is measured, as a person reads it; the first that a result holds is drawn."""


class StageMemory:
    """A `StageMemory` is what memory was taken by stage.

    Args:
        device: The device that works.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.timer = StageTimer(device)
        self.memory: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Watch what runs inside."""
        with self.timer.stage(name):
            yield
        self.memory[name] = read_memory_gib(self.device)
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            self.memory[name]["device_gib"] = (total - free) / 2**30


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of the values of a tensor."""
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()


def measure_preset(args: argparse.Namespace, preset: Offload) -> dict[str, Any]:
    """Do the whole job once under a preset."""
    watch = StageMemory(torch.device(args.device))
    job = Job(args, watch.stage, EDITOR, offload=preset)
    outputs = job.run(watch.stage)
    return {
        "preset": preset,
        "memory": watch.memory,
        "seconds": dict(watch.timer.seconds),
        "digests": {name: digest(tensor) for name, tensor in outputs.items()},
        "finite": all(bool(tensor.isfinite().all()) for tensor in outputs.values()),
    }


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every preset; yield the result after each, JSON-ready."""
    deadline, presets = Deadline(args.budget), list[dict[str, Any]]()
    # Not by this process, which would take memory of a GPU from then on.
    environment = {**run_fresh(read_block, args.commit), "command": tell_command()}
    for preset in deadline.take(get_args(Offload)):
        row = run_fresh(measure_preset, args, preset)
        presets.append({**row, "same_bytes": row["digests"] == (presets or [row])[0]["digests"]})
        yield {
            "schema": SCHEMA,
            "environment": environment,
            "settings": {
                "model": name_model(args),
                **{name: getattr(args, name) for name in ("steps", "dtype", "device", "attention", "seed")},
            },
            "presets": presets,
            **tell_left_out(deadline),
        }


def list_kinds(result: Mapping[str, Any]) -> list[str]:
    """Return what a result holds of `KINDS`."""
    return [kind for kind in KINDS if kind in result["presets"][0]["memory"]["load"]]


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings, presets = result["settings"], result["presets"]
    lines = [
        "# Memory by stage",
        "",
        tell_origin(result),
        "",
        f"{settings['model']} on {tell_place(result)}, {settings['steps']} steps; each preset in a process of its own.",
    ]
    for kind in list_kinds(result):
        rows = [(row["preset"], *(f"{row['memory'][stage][kind]:.2f}" for stage in STAGES)) for row in presets]
        lines += ["", f"GiB, {KINDS[kind]}:", "", *make_table(("preset", *STAGES), rows)]
    spent = [(row["preset"], *(f"{row['seconds'][stage]:.2f}" for stage in STAGES)) for row in presets]
    lines += ["", "Seconds, of the first and only run:", "", *make_table(("preset", *STAGES), spent), ""]
    same = ", ".join(f"{row['preset']} {'yes' if row['same_bytes'] else 'NO'}" for row in presets[1:])
    lines.append(f"- same latents and frames as `none`, to the last byte: {same}")
    if settings["model"] == FULL_SIZE:
        lines.append("- random weights are drawn on the device, so that *load* holds all of them under every preset")
    if settings["device"] == "cpu":
        lines.append("- on a CPU host and device are one, and so nothing is spared; libraries are most of it")
    return "\n".join([*lines, "", "![Memory by stage and preset](memory.png)", ""])


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw the peak of every stage or, on a CPU, the resident set."""
    kind = list_kinds(result)[0]
    series = []
    for row in result["presets"]:
        heights = [row["memory"][stage][kind] for stage in STAGES]
        series.append(Bars(row["preset"], heights, [f"{height:.2g}" for height in heights]))
    plot_bars(folder / "memory.png", STAGES, series, title="Memory by stage", y_label=f"GiB, {KINDS[kind]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it; the exit status is 1 when outputs are not finite or not the same."""
    parser = make_parser("memory", __doc__)
    add_steps(parser)
    add_attention(parser)
    args = parser.parse_args(argv)
    result = write_growing(args.output, measure(args), make_markdown, write_plots)
    return 0 if all(row["finite"] and row["same_bytes"] for row in result["presets"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())

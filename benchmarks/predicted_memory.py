"""The benchmark predicts peak memory by stage for every offload preset, on a GPU that is emulated; nothing is measured.

The exact architecture of CogVideoX-5B goes through the whole job at full size on tensors without values. What is told
are allocations, each with the line that made it: the allocator's slack, workspaces of kernels and the CUDA context,
about 1 GiB together, come on top.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from ddim_lightning.engine.config import Offload, Outputs, Runtime, Schedule
from ddim_lightning.engine.parts import describe_part
from ddim_lightning.engine.recommended import read_recommended
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.types import Clip

from .arguments import QUICK_STEPS, add_output, read_count
from .edit_report import make_table
from .emulated_cuda import GIB, EmulatedDevice, Peak, emulate_cuda
from .emulated_cuda.job import LOADING, STAGES, run_job
from .environment import read_block
from .loading import EDITOR, FULL_SIZE, GUIDANCE_SCALE, PROMPTS, TINY
from .output import tell_origin, write_files
from .plots import Bars, plot_bars
from .weightless import write_weightless

SCHEMA = "ddim-lightning/predicted-memory/2"
PREDICTED = "Predicted, not measured"
GOALS_GIB = {"none": 22.0, "model": 14.0, "blocks": 7.5}
"""The highest peak of each preset at full size."""
CARDS_GIB = {"none": 24.0, "model": 16.0, "blocks": 8.0}
"""The card that each preset is for: how many rows go through a block together depends on what is free."""
TAKEN_GIB = 0.5
"""What the CUDA context takes of a card."""
FLOW_EDIT = "edit FlowEdit"
"""The edit by the method that is recommended for the bundled model, which has the widest passes: six rows."""
SHOWN = (*STAGES[:-1], FLOW_EDIT, STAGES[-1])
DOCUMENTED = ("inverters/uni_inv.py", "inverters/fixed_point.py")
"""Where the host waits once a step, and says so: these stop as soon as something is small enough."""


def make_module(args: argparse.Namespace, model: str, preset: Offload, **options: Any) -> DDIMInversionModule:
    """Make a module of the model at hand, with all that is recommended but what is given."""
    return DDIMInversionModule(
        model,
        schedule=Schedule(num_inference_steps=args.steps),
        runtime=Runtime(offload=preset, attention="flash"),
        **options,
    )


def run(args: argparse.Namespace, model: str, preset: Offload) -> list[EmulatedDevice]:
    """Do the whole job under a preset, and on another device the edit by `FLOW_EDIT`."""
    total = args.total_gib or CARDS_GIB[preset]
    devices = []
    for stage, options in (("edit", {}), (FLOW_EDIT, {"editor": EDITOR, "guidance_scale": GUIDANCE_SCALE})):
        if stage == FLOW_EDIT and stage not in args.stages:
            continue
        inverts = stage == "edit" and not {"invert", "reconstruct"}.isdisjoint(args.stages)
        outputs = Outputs(reconstruct=inverts, on_error="raise")
        ends_with = None if stage == "edit" and "decode" in args.stages else "edit"
        with emulate_cuda(total_gib=total, taken_gib=TAKEN_GIB) as device:
            module = make_module(args, model, preset, outputs=outputs, **options)
            limits = module.video_limits
            size = (args.num_frames or limits.num_frames, 3, args.height or limits.height, args.width or limits.width)
            clip = Clip("clip", torch.zeros(size, dtype=torch.uint8), prompts=PROMPTS[:1], source_prompt=PROMPTS[1])
            run_job(module, [clip], device, names={"edit": stage}, ends_with=ends_with)
        devices.append(device)
    return devices


def tell_preset(args: argparse.Namespace, preset: Offload, devices: Sequence[EmulatedDevice]) -> dict[str, Any]:
    """Return what was seen of a preset, JSON-ready."""
    found: dict[str, Peak] = {}
    for device in reversed(devices):  # what both have seen is told of the first
        found |= device.memory.peaks
    return {
        "preset": preset,
        "card_gib": args.total_gib or CARDS_GIB[preset],
        "peak_gib": {stage: found[stage].nbytes / GIB for stage in args.stages},
        "pinned_gib": max(peak.nbytes for device in devices for peak in device.pinned.peaks.values()) / GIB,
        "alive": {stage: list_alive(found[stage], args.top) for stage in args.stages},
        "waits_in_steps": [
            {"kind": wait.kind, "stage": wait.stage, "place": str(wait.place), "count": count}
            for device in devices
            for wait, count in device.waits.list_in_steps().items()
            if wait.stage != "decode"  # whose steps are whole videos, each written to the host
        ],
    }


def list_alive(peak: Peak, count: int) -> list[dict[str, Any]]:
    """Return what takes most of a peak, JSON-ready: tensors that are alike in one row, and all weights in one."""
    weights = [one for one in peak.alive if one.stage in LOADING]
    rows = [
        {
            "gib": count * one.nbytes / GIB,
            "count": count,
            "shape": list(one.shape),
            "dtype": str(one.dtype).removeprefix("torch."),
            "place": str(one.place),
        }
        for one, count in Peak(0, tuple(one for one in peak.alive if one.stage not in LOADING)).list_largest(count)
    ]
    if weights:
        size = sum(one.nbytes for one in weights) / GIB
        rows.append({"gib": size, "count": len(weights), "shape": [], "dtype": "", "place": "weights, while loading"})
    return sorted(rows, key=lambda row: -row["gib"])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Predict every preset and return the result, JSON-ready."""
    with tempfile.TemporaryDirectory() as folder:
        model = str(write_weightless(Path(folder))) if args.full_size else TINY
        presets = [tell_preset(args, preset, run(args, model, preset)) for preset in args.offload]
        module = make_module(args, model, "none")
        limits, recommended = module.video_limits, read_recommended(model)
        settings = {
            "model": FULL_SIZE if args.full_size else TINY,
            "num_frames": args.num_frames or limits.num_frames,
            "height": args.height or limits.height,
            "width": args.width or limits.width,
            "dtype": "bfloat16",
            "steps": module.schedule.num_inference_steps,
            "stages": list(args.stages),
            "device": "emulated",
            "guidance_scale": module.guidance_scale,
            "inverter": describe_part(module.inverter),
            "editor": recommended["editor"],
        }
    return {
        "schema": SCHEMA,
        "predicted": True,
        "environment": read_block(args.commit),
        "settings": settings,
        "presets": presets,
    }


def list_missed(result: Mapping[str, Any]) -> list[str]:
    """Return the stages that lie above the goal of their preset, ``preset: stage``."""
    if result["settings"]["model"] != FULL_SIZE:
        return []
    return [
        f"{row['preset']}: {stage}"
        for row in result["presets"]
        for stage, peak in row["peak_gib"].items()
        if peak > GOALS_GIB[row["preset"]]
    ]


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings, presets = result["settings"], result["presets"]
    size = f"{settings['num_frames']} x {settings['height']} x {settings['width']}"
    editor = settings["editor"]["class_path"].rpartition(".")[2]
    stages = settings["stages"]
    how = (
        "on an emulated GPU, whose tensors have shapes, dtypes and storages but no values. Told are allocations; the "
        "allocator's slack, workspaces of kernels and the CUDA context come on top."
    )
    what = (
        f"{settings['model']}, {size}, {settings['dtype']}, {settings['steps']} steps, eager; *edit* is {editor} at "
        f"guidance {settings['guidance_scale']:g}, as recommended, *{FLOW_EDIT}* what is recommended for the bundled "
        f"model; {TAKEN_GIB:g} GiB of each card are the context's."
    )
    lines = [
        "# Memory by stage, as predicted",
        "",
        f"**{PREDICTED}**: {how}",
        "",
        tell_origin(result),
        "",
        what,
        "",
        f"Peak of what is allocated in each stage, GiB, {PREDICTED.lower()}:",
        "",
        *make_table(("preset", "card", *stages, "pinned on the host"), [_list_row(row) for row in presets]),
        "",
    ]
    if settings["model"] == FULL_SIZE:
        goals = ", ".join(f"{preset} {goal:g}" for preset, goal in GOALS_GIB.items())
        missed = list_missed(result)
        lines += [f"Goals in GiB: {goals}; {'missed by ' + ', '.join(missed) if missed else 'all met'}.", ""]
    lines += ["![Memory by stage and preset](predicted-memory.png)", "", "## What is alive at each peak", ""]
    for row in presets:
        for stage in stages:
            lines += [f"### {row['preset']}, {stage}: {row['peak_gib'][stage]:.2f} GiB", ""]
            held = [
                (f"{one['gib']:.2f}", f"{one['count']}", " x ".join(map(str, one["shape"])), one["dtype"], one["place"])
                for one in row["alive"][stage]
            ]
            lines += [*make_table(("GiB", "tensors", "shape", "dtype", "made by"), held), ""]
    lines += ["## Waits of the host between the steps of a loop", ""]
    waits = [
        (row["preset"], wait["stage"], wait["kind"], wait["place"], f"{wait['count']}")
        for row in presets
        for wait in row["waits_in_steps"]
    ]
    lines += make_table(("preset", "stage", "kind", "line", "count"), waits) if waits else ["None."]
    return "\n".join(lines) + "\n"


def _list_row(row: Mapping[str, Any]) -> list[str]:
    gib = (*row["peak_gib"].values(), row["pinned_gib"])
    return [row["preset"], f"{row['card_gib']:g}", *(f"{one:.2f}" for one in gib)]


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw the peak of every stage."""
    stages = result["settings"]["stages"]
    series = []
    for row in result["presets"]:
        heights = [row["peak_gib"][stage] for stage in stages]
        series.append(Bars(row["preset"], heights, [f"{height:.2g}" for height in heights]))
    title = f"Memory by stage ({PREDICTED.lower()})"
    plot_bars(folder / "predicted-memory.png", stages, series, title=title, y_label="GiB, peak of what is allocated")


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, print the report and write it; the exit status is 1 where a step waits that should not."""
    parser = argparse.ArgumentParser(
        prog="ddim-lightning benchmark predicted_memory", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--tiny", dest="full_size", action="store_false", help="the bundled model, not CogVideoX-5B")
    parser.add_argument("--offload", nargs="+", choices=get_args(Offload), default=get_args(Offload), help="(all)")
    parser.add_argument("--stages", nargs="+", choices=SHOWN, default=SHOWN, help="that are told (all)")
    parser.add_argument("--total-gib", type=float, help="memory of the card (24, 16 and 8 for none, model and blocks)")
    parser.add_argument("--num-frames", type=read_count, help="of the clip (the model's own)")
    parser.add_argument("--height", type=read_count, help="likewise")
    parser.add_argument("--width", type=read_count, help="likewise")
    parser.add_argument("--steps", type=read_count, help="of each direction (as recommended)")
    parser.add_argument("--quick", dest="steps", action="store_const", const=QUICK_STEPS, help=f"{QUICK_STEPS} steps")
    parser.add_argument("--top", type=read_count, default=10, help="rows of what is alive at a peak (10)")
    add_output(parser)
    result = measure(args := parser.parse_args(argv))
    report = make_markdown(result)
    print(report, end="")
    write_files(args.output, result, report, write_plots)
    waits = [wait for row in result["presets"] for wait in row["waits_in_steps"]]
    return 0 if all(wait["place"].rpartition(" < ")[2].startswith(DOCUMENTED) for wait in waits) else 1


if __name__ == "__main__":
    raise SystemExit(main())

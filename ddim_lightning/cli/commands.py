"""The verbs `edit`, `demo`, `benchmark` and `export` each make a module and its data, and run it once."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.cli.options import Frames, Graphs, Method, Run, Video
from ddim_lightning.cli.running import DONE, SOME_SKIPPED, predict_clips, tell_results
from ddim_lightning.data.benchmark import Benchmark
from ddim_lightning.data.frames import make_size
from ddim_lightning.datamodule import VideoDataModule
from ddim_lightning.engine.artifacts import MANIFEST
from ddim_lightning.engine.config import Outputs
from ddim_lightning.engine.export import export_network, make_row_size
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.output.suite import Suite, finish_benchmark
from ddim_lightning.report.tables import make_means, print_benchmark, print_edits
from ddim_lightning.runtime.processes import is_first, leave_group
from ddim_lightning.tiny.demo import make_demo


def edit(*, run: Run, video: Video, frames: Frames, method: Method, outputs: Outputs, **groups: Any) -> int:
    """Invert, reconstruct and edit one video, and return the exit status."""
    module = DDIMInversionModule(**vars(method), **groups, outputs=replace(outputs, on_error="raise"))
    data = VideoDataModule([video.video], video.prompt, **vars(frames))
    data.check_clips(module.video_limits)  # before gigabytes of weights are loaded
    return tell_results(run, predict_clips(run, module, data))


def demo(*, run: Run) -> int:
    """Edit clips of moving shapes, whose edits have a known answer, and return the exit status."""
    run, (module, adapted, data, truth) = replace(run, overwrite=True), make_demo()
    records = predict_clips(run, module, data, [truth])
    predict_clips(replace(run, output=str(Path(run.output, "in-context"))), adapted, data, [truth])
    if not (run.quiet or run.json):
        print_edits(truth.rows)
    return tell_results(run, records, {"edits": truth.rows, "means": make_means(truth.rows)})


def benchmark(*, run: Run, suite: Suite, benchmark: Benchmark, method: Method, outputs: Outputs, **groups: Any) -> int:
    """Run a public benchmark, lay it out for its evaluation and measure it, and return the exit status."""
    module = DDIMInversionModule(**vars(method), **groups, outputs=outputs)
    videos: Any = benchmark.requests  # no type of an option; see `Videos`
    data = VideoDataModule(videos, height=suite.height, width=suite.width, fit=benchmark.config.fit)
    with leave_group():
        records = predict_clips(run, module, data, devices=suite.devices)
        if not is_first():
            return DONE
    summary = finish_benchmark(benchmark, run.output, outputs, str(module.trainer.strategy.root_device))
    if not (run.quiet or run.json):
        print_benchmark(summary)
    status = tell_results(run, records, {"benchmark": summary})
    return SOME_SKIPPED if any(edit["problems"] for edit in summary["edits"]) else status


def export(*, run: Run, graphs: Graphs, frames: Frames, method: Method, **groups: Any) -> int:
    """Write the network of a model as files that PyTorch alone can run, and return the exit status."""
    module = DDIMInversionModule(**vars(method), **groups)
    limits = module.video_limits
    count = frames.num_frames if isinstance(frames.num_frames, int) else limits.num_frames
    if count > limits.num_frames:
        raise ValueError(f"num_frames must be at most {limits.num_frames}, the window of longer clips, got {count}")
    pixels = make_size(limits, frames.height, frames.width)
    wants_gpu = run.accelerator in ("gpu", "cuda") or (run.accelerator == "auto" and torch.cuda.is_available())
    module.load("cuda" if wants_gpu else "cpu")
    size = make_row_size(module.components, count, *pixels)

    def tell(name: str, k: int, total: int) -> None:
        if not (run.quiet or run.json):
            print(f"{graphs.format}: {name}, {k + 1} of {total}", file=sys.stderr, flush=True)

    folder, scale = Path(run.output), module.guidance_scale
    manifest = export_network(module.engine, folder, graphs.format, size=size, guidance_scale=scale, on_layout=tell)
    if run.json:
        print(json.dumps(asdict(manifest)))
    elif not run.quiet:
        print(f"{folder / MANIFEST}: {len(manifest.layouts)} graphs, latents of {size} a row")
    return 0

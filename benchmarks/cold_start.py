"""The benchmark says what a fresh process spends up to its first step, by where its graphs come from.

Beside it stands what making them took. Seconds are processor time, of the process and of the compilers that it starts,
on one thread. Exported graphs are run where the compiler is a program that fails.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.engine.config import Runtime, Schedule
from ddim_lightning.engine.export import export_network, make_row_size
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.runtime.compile_cache import save_compiled

from .arguments import add_output, read_count
from .edit_report import make_table
from .environment import read_block
from .loading import GUIDANCE_SCALE, TINY
from .measuring import relative_l2
from .output import tell_origin, write_files
from .stages import run_fresh

SCHEMA = "ddim-lightning/cold-start/2"
EAGER, COMPILED, CACHED = "eager", "compile", "compile, filled cache"
EXPORTED = ("torch-export", "aoti", "aoti-blocks")
WAYS = (EAGER, COMPILED, CACHED, *EXPORTED)
STEPS = 4
NOTES = (
    "- *Seconds* are processor time, of the process and of the compilers that it starts, on one thread; imports do not",
    "  count. *Made* is what the export took, or the run that filled the cache; *MiB* is what lies on disk after it.",
    "- *Ready* is when the model is loaded, *first step* when the first step of an inversion is done: with loading,",
    "  embedding of the prompt, and graphs that are compiled or read. *Next* is a step after it.",
    "- Exports hold three graphs: one row, and those of an edit by K/V injection. What is compiled or cached is one.",
    "- Exported graphs ran with `CC` and `CXX` set to `false`, and no cache of compiled code.",
    "- *Distance* is the relative L2 distance of the noise that the inversion finds to that of *eager*.",
)


def make_module(args: argparse.Namespace, **runtime: Any) -> DDIMInversionModule:
    """Make a module that is not loaded yet."""
    return DDIMInversionModule(
        args.model,
        editor=KVInjection(),
        guidance_scale=GUIDANCE_SCALE,
        schedule=Schedule(num_inference_steps=STEPS),
        runtime=Runtime(dtype="float32", **runtime),
    )


def make_runtime(way: str, folder: Path) -> dict[str, Any]:
    """Return the options of a way, whose files are in a folder."""
    if way == COMPILED:
        return {"compile": True}
    if way == CACHED:
        return {"compile": True, "compile_cache": str(folder)}
    return {"exported": str(folder)} if way in EXPORTED else {}


def make_files(args: argparse.Namespace, way: str, folder: Path) -> float:
    """Make what a way needs before it starts, and return the seconds."""
    start = read_processor_s()
    if way == CACHED:
        run_steps(args, way, folder)
        save_compiled(folder)
        return read_processor_s() - start
    module = make_module(args)
    module.load("cpu")
    limits = module.video_limits
    size = make_row_size(module.components, limits.num_frames, limits.height, limits.width)
    export_network(module.engine, folder, way, size=size, guidance_scale=GUIDANCE_SCALE)
    return read_processor_s() - start


def run_steps(args: argparse.Namespace, way: str, folder: Path) -> tuple[dict[str, float], torch.Tensor]:
    """Load a model, invert noise, and return the seconds and the noise that is found, (1, f, c, h, w)."""
    torch.set_num_threads(1)
    start, stamps = read_processor_s(), list[float]()
    module = make_module(args, **make_runtime(way, folder))
    module.load("cpu")
    ready, limits = read_processor_s(), module.video_limits
    size = make_row_size(module.components, limits.num_frames, limits.height, limits.width)
    latents = torch.randn(1, *size, generator=torch.Generator().manual_seed(args.seed))
    with torch.inference_mode():
        found = module.engine.invert(latents, callback=lambda step, x: stamps.append(read_processor_s()))
    later = [after - before for before, after in pairwise(stamps)]
    seconds = {"ready": ready - start, "first_step": stamps[0] - start, "next_step": statistics.median(later)}
    return seconds, found.levels[0].clone()


def read_processor_s() -> float:
    """Return the processor time of this process and of those that it has waited for, in seconds."""
    return sum(os.times()[:4])


@contextmanager
def with_environment(**values: str) -> Iterator[None]:
    """Let processes that are started inside find these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure_way(args: argparse.Namespace, way: str) -> tuple[dict[str, Any], torch.Tensor]:
    """Make what a way needs, start it several times, and return its row and what it finds; all in fresh processes."""
    with tempfile.TemporaryDirectory() as work:
        files, made = Path(work, "files"), None
        compilers = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        if way in (CACHED, *EXPORTED):
            with with_environment(TORCHINDUCTOR_CACHE_DIR=str(Path(work, "made")), **compilers):
                made = run_fresh(make_files, args, way, files)
        compilers |= {"CC": "false", "CXX": "false"} if way in EXPORTED else {}
        samples, found = [], torch.empty(0)
        for k in range(args.rounds):
            with with_environment(TORCHINDUCTOR_CACHE_DIR=str(Path(work, f"cache-{k}")), **compilers):
                seconds, found = run_fresh(run_steps, args, way, files)
            samples.append(seconds)
        size = sum(path.stat().st_size for path in files.rglob("*") if path.is_file()) / 2**20
    return {
        "way": way,
        "made_s": made,
        "mib": None if made is None else size,
        **{f"{name}_s": [sample[name] for sample in samples] for name in samples[0]},
    }, found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every way; the result is JSON-ready."""
    rows, exact = [], torch.empty(0)
    for way in (EAGER, *(way for way in args.ways if way != EAGER)):
        row, found = measure_way(args, way)
        exact = found if way == EAGER else exact
        rows.append({**row, "relative_l2": relative_l2(found, exact), "finite": bool(found.isfinite().all())})
        print(f"{way}: first step after {statistics.median(row['first_step_s']):.1f} s", flush=True)
    return {
        "schema": SCHEMA,
        "environment": read_block(args.commit),
        "settings": {"model": args.model, "steps": STEPS, "rounds": args.rounds, "seed": args.seed, "threads": 1},
        "rows": rows,
    }


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    table = []
    for row in result["rows"]:
        made = ("", "") if row["made_s"] is None else (f"{row['made_s']:.1f}", f"{row['mib']:.1f}")
        ready, first, following = (statistics.median(row[name]) for name in ("ready_s", "first_step_s", "next_step_s"))
        times = (f"{ready:.2f}", f"{first:.2f}", f"{following:.3f}")
        table.append((f"`{row['way']}`" if row["way"] in EXPORTED else row["way"], *made, *times, _tell(row)))
    head = ("way", "made (s)", "MiB", "ready (s)", "first step (s)", "next (s)", "distance")
    settings = result["settings"]
    lines = [
        "# Cold start: what a fresh process spends up to its first step",
        "",
        tell_origin(result),
        "",
        f"Model {settings['model']} on a CPU, float32; medians of {settings['rounds']} starts.",
        "",
        *make_table(head, table),
        "",
        *NOTES,
    ]
    return "\n".join(lines) + "\n"


def _tell(row: Mapping[str, Any]) -> str:
    return "0" if row["relative_l2"] == 0.0 else f"{row['relative_l2']:.0e}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 1 when something that was found is not finite."""
    parser = argparse.ArgumentParser(
        prog="ddim-lightning benchmark cold_start", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default=TINY, help="tiny, or a folder (tiny)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="beside eager, which is always measured")
    parser.add_argument("--rounds", type=read_count, default=3, help="starts of each (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the latents (0)")
    add_output(parser)
    args = parser.parse_args(argv)
    result = measure(args)
    report = make_markdown(result)
    write_files(args.output, result, report)
    print(report, end="")
    return 0 if all(row["finite"] for row in result["rows"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""A public benchmark is opened before anything heavy is loaded; what a run made of it is then laid out and measured."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddim_lightning.data.benchmark import Benchmark, read_benchmark
from ddim_lightning.data.benchmark_config import read_benchmark_config
from ddim_lightning.data.manifest import ClipRequest
from ddim_lightning.metrics.measures import MEASURES, OF_FRAMES, Networks
from ddim_lightning.report.console import plain_output


@dataclass(frozen=True)
class Suite:
    """The `Suite` says which public benchmark is run, and how much of it.

    Args:
        benchmark: ``five`` (FiVE-Bench), ``davis``, ``editboard``, ``tgve``, ``ivebench``, or the YAML file of one's
            own; its keys are those of `BenchmarkConfig`, told in docs/public-benchmarks.md.
        folder: Where it lies, as it is unpacked.
        edits: A table of its edits, by name (``edit1_FiVE``), or a file of one's own; repeat it for more. Without it
            all are made.
        inside_masks: Hold edits inside the benchmark's masks, which otherwise serve its numbers alone.
        num_frames: Frames of a clip, 4k + 1, or ``all``; ``None`` is what the benchmark says.
        height: In pixels; ``None`` is the model's own.
        width: In pixels; likewise.
        negative_prompt: What guidance moves away from.
        devices: How many devices share the clips; ``auto`` is all.

    Raises:
        ValueError: A number out of its range.
    """

    benchmark: str
    folder: str
    edits: list[str] = field(default_factory=list)
    inside_masks: bool = False
    num_frames: int | Literal["all"] | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    devices: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width", "devices"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")


def open_benchmark(*, suite: Suite, method: Any, **_: object) -> Benchmark:
    """Read the edits of a benchmark.

    Args:
        suite: Which, and how much of it.
        method: Its ``inversion_prompt`` says whether inversions are made under the source prompts.

    Raises:
        OSError: If something is not there; always the exact subclass.
        ValueError: If its config or a row breaks a rule.
    """
    for place, number in enumerate(read_benchmark_config(suite.benchmark).numbers, 1):
        where = f"{suite.benchmark}, key numbers, entry {place}"
        if number.measure not in (None, *OF_FRAMES):
            raise ValueError(f"{where}, key measure: must be of {', '.join(OF_FRAMES)}, got {number.measure!r}")
        if number.measure is not None and number.number not in (known := MEASURES[number.measure].numbers):
            raise ValueError(f"{where}, key number: must be of {', '.join(known)}, got {number.number!r}")
    default = ClipRequest(num_frames=suite.num_frames, negative_prompt=suite.negative_prompt)
    with plain_output(as_json=False):
        return read_benchmark(
            suite.benchmark,
            suite.folder,
            suite.edits,
            default=default,
            inside_masks=suite.inside_masks,
            by_source_prompt=method.inversion_prompt is None,
        )


def finish_benchmark(benchmark: Benchmark, output: str | Path, networks: Networks, device: str) -> dict[str, Any]:
    """Lay out what a run made as the benchmark's evaluation reads it, measure it, and write the page of the run anew.

    Args:
        benchmark: What was run.
        output: The output folder of the run, which has ended.
        networks: Where the networks of measures lie.
        device: Where they work.

    Returns:
        The summary, as in ``benchmark.json``.

    Raises:
        OSError: If something cannot be written.
    """
    from ddim_lightning.output.evaluation import write_evaluation
    from ddim_lightning.output.folder import read_results
    from ddim_lightning.output.page import try_to_write_page
    from ddim_lightning.output.scores import Scorer

    folder = Path(output)
    records = {record["id"]: record for record in read_results(folder) if record["status"] == "done"}
    with plain_output(as_json=False):  # nothing is printed here but warnings
        for note in write_evaluation(benchmark, folder, records):
            warnings.warn(note, stacklevel=2)
        summary = Scorer(benchmark, folder, networks, device).score(records)
        try_to_write_page(folder)
    return summary

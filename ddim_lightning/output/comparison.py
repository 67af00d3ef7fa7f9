"""Two folders of videos are measured against each other, whoever made them: a line a pair, and the means."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from ddim_lightning.data.listing import name_some
from ddim_lightning.metrics.measures import DEFAULT, LATENTS, MEASURES, Networks, check_measures
from ddim_lightning.output.measured import CSV, JSON, Measured, check_measured, make_result, write_measured
from ddim_lightning.output.pairs import Pair, find_pairs
from ddim_lightning.report.console import plain_output, say
from ddim_lightning.report.text import dump_json, make_plain

if TYPE_CHECKING:
    from ddim_lightning.metrics.measurer import Measurer

DONE, SOME_SKIPPED = 0, 3


@dataclass(frozen=True)
class Comparison:
    """The `Comparison` says which videos are measured against which.

    Args:
        reference: What is compared with: a video, a folder of numbered frames, a folder of either, or a run's output
            folder, of which it is the sources.
        videos: What is measured, likewise; of a run it is the reconstructions and the edits. Pairs are found by name.
        masks: White where a video was to change: a video, an image or a folder of frames for all clips, or a folder
            with one for each by its name.
        prompts: What the videos show, for ``clip_text``: a table (CSV, JSON, JSONL) with columns ``id`` and ``prompt``.
            A run knows its own.
        metrics: What is measured; repeat it for more. By default it is all that can be measured.
        fit: How frames of the reference are brought to the size of the video, where it is another: ``crop``, ``pad`` or
            ``stretch``; ``None`` refuses them.
        num_frames: How many frames of both are taken, from the first on; ``None`` is all, as many in both.
        stride: Every how many of them.
        output: Folder of ``metrics.json`` and ``metrics.csv``; ``None`` writes none.
        accelerator: Device that works; ``auto`` is a GPU where there is one.
        json: Print JSON on stdout, and nothing else there.
        quiet: Print errors and warnings only.

    Raises:
        ValueError: An option out of its range.
    """

    reference: str
    videos: str
    masks: str | None = None
    prompts: str | None = None
    metrics: Sequence[str] = ()
    fit: Literal["crop", "pad", "stretch"] | None = None
    num_frames: int | None = None
    stride: int = 1
    output: str | None = None
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        check_measures(self.metrics)
        for name in ("num_frames", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")


def tell_metrics(*, comparison: Comparison, networks: Networks) -> NoReturn:
    """Measure, write and print, and exit: with 3 where something could not be compared or measured.

    Raises:
        OSError: What is not there, or an output folder that will not do.
        ValueError: No pair at all.
        SystemExit: Always.
    """
    if comparison.output is not None:
        check_measured(Path(comparison.output))
    with plain_output(comparison.json):
        pairs = find_pairs(comparison.reference, comparison.videos, comparison.masks, comparison.prompts)
        if not pairs.found:
            there, got = name_some(pairs.without_video) or "none", name_some(pairs.without_reference) or "none"
            raise ValueError(f"videos: must have names as in {comparison.reference} ({there}), got {got}")
        measurer = _load(comparison, networks, pairs.found)
        rows = []
        for pair in pairs.found:
            rows.append(measure_pair(pair, measurer, comparison))
            for sentence in [*rows[-1].problems, *rows[-1].notes]:
                say(f"warning: {pair.name}: {sentence}")
    result = make_result(pairs, rows, measurer.missing, {**asdict(comparison), **asdict(networks)})
    if comparison.output is not None:
        write_measured(result, Path(comparison.output))
    _tell(result, comparison)
    lacking = pairs.without_reference or (measurer.missing and comparison.metrics)
    sys.exit(SOME_SKIPPED if lacking or any(row.problems for row in rows) else DONE)


def measure_pair(pair: Pair, measurer: Measurer, comparison: Comparison) -> Measured:
    """Measure a pair; what cannot be read or measured is told in its problems, and costs nothing else.

    Args:
        pair: What is compared.
        measurer: What measures frames.
        comparison: Which frames, and what was asked for by name.
    """
    from ddim_lightning.metrics.latents import compare_files
    from ddim_lightning.output.pair_frames import FrameRule, read_pieces

    numbers: dict[str, float] = {}
    problems: list[str] = []
    notes: list[str] = []
    try:
        if pair.video is not None and pair.reference is not None and measurer.names:
            rule = FrameRule(comparison.num_frames, comparison.stride, comparison.fit)
            clip = measurer.start(pair.prompt)
            for piece in read_pieces(pair.reference, pair.video, pair.mask, rule):
                clip.add(piece)
            numbers, problems, notes = clip.read(), clip.problems, clip.notes
            if comparison.metrics:
                problems += _find_unmeasured(pair, measurer.names, numbers)
        if pair.latents is not None and (not comparison.metrics or LATENTS in comparison.metrics):
            numbers |= compare_files(*pair.latents)
    except (OSError, ValueError) as error:
        problems.append(" ".join(str(error).split()))
    return Measured(pair, numbers, problems, notes)


def _load(comparison: Comparison, networks: Networks, pairs: Sequence[Pair]) -> Measurer:
    """Load the measures that are asked for, or by default all that might be made of these pairs."""
    import torch

    from ddim_lightning.metrics.measurer import load_measurer

    names = [name for name in comparison.metrics or DEFAULT if name != LATENTS]
    if not comparison.metrics and not any(pair.prompt for pair in pairs):
        names = [name for name in names if "prompt" not in MEASURES[name].needs]
    device = comparison.accelerator.replace("gpu", "cuda")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        got = f"{comparison.accelerator!r}: {str(error).partition(chr(10))[0]}"
        raise ValueError(f"accelerator: must be one that is here, got {got}") from error
    measurer = load_measurer(names, networks, device)
    for name, lacks in {} if comparison.quiet and not comparison.metrics else measurer.missing.items():
        say(f"not measured: {name}: {lacks}")
    return measurer


def _find_unmeasured(pair: Pair, names: Sequence[str], numbers: Mapping[str, float]) -> list[str]:
    """Say why what was asked for by name has no number."""
    given = {"mask": pair.mask, "prompt": pair.prompt}
    found = []
    for name in names:
        if not set(MEASURES[name].numbers) & set(numbers):
            lacks = [need for need in MEASURES[name].needs if given.get(need, "") is None]
            found.append(f"{name}: {f'{lacks[0]}s must be given' if lacks else 'says nothing of these frames'}")
    return found


def _tell(result: Mapping[str, Any], comparison: Comparison) -> None:
    """Print the table, what has no partner, and where the files are; or all of it as JSON."""
    from ddim_lightning.report.tables import print_measured

    for side, names in result["unpaired"].items():
        if names:
            say(f"without a partner in {'reference' if side == 'videos' else 'videos'}: {name_some(names)}")
    if comparison.json:
        print(dump_json(result))
    elif not comparison.quiet:
        print_measured(result["pairs"], result["means"])
        if comparison.output is not None:
            for name in (JSON, CSV):
                print(make_plain(str(Path(comparison.output, name))))

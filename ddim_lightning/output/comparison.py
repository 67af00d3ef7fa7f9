"""A comparison says which videos are measured against which; nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ddim_lightning.metrics.measures import check_measures


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

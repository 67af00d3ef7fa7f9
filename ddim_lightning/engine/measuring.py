"""What a run is asked to measure beside PSNR and SSIM is measured of each video while it comes from the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_lightning.engine.config import Outputs
from ddim_lightning.metrics.functional import use_full_precision
from ddim_lightning.metrics.measurer import ClipMeasuring, Measurer, load_measurer
from ddim_lightning.metrics.measures import MEASURES
from ddim_lightning.metrics.pieces import Piece
from ddim_lightning.types import Clip

_COMPARED = {number for measure in MEASURES.values() if measure.is_compared for number in measure.numbers}


def make_measurer(outputs: Outputs, device: torch.device) -> Measurer | None:
    """Load what a run is asked to measure with; ``None`` where it is asked for nothing.

    Args:
        outputs: What is asked for.
        device: Where it works.

    Raises:
        ValueError: A network that is not here; better now than after hours of work.
    """
    if not outputs.metrics:
        return None
    with torch.device("cpu"), use_full_precision(device):  # whatever a Trainer makes the default
        measurer = load_measurer(outputs.metrics, outputs, device)
    for name, lacks in measurer.missing.items():
        raise ValueError(f"metrics: {name} cannot be measured: {lacks}")
    return measurer


@dataclass
class SourceMeter:
    """A `SourceMeter` measures one video of a clip against its source, piece by piece.

    Args:
        measuring: The measures at work.
        clip: The clip.
        suffix: Ends the names of numbers that depend on the source's pixels.
    """

    measuring: ClipMeasuring
    clip: Clip
    suffix: str = ""

    def add(self, video: Tensor, where: slice) -> None:
        """Take in frames (f, c, h, w) in 0 .. 1, and where they stand in the clip."""
        mask = None if self.clip.mask is None else self.clip.mask[where]
        self.measuring.add(Piece(video, self.clip.frames[where], mask))

    def read(self) -> dict[str, float]:
        """Return the numbers."""
        numbers = self.measuring.read()
        return {name + self.suffix * (name in _COMPARED): value for name, value in numbers.items()}

    @property
    def warnings(self) -> list[str]:
        """Sentences about what could not be measured, or was measured otherwise than one would think."""
        return [f"metrics: {sentence}" for sentence in [*self.measuring.problems, *self.measuring.notes]]

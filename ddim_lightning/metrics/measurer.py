"""A measurer holds the networks that measures need, and measures clips with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ddim_lightning.metrics.measures import MEASURES, OF_FRAMES, Networks, check_measures
from ddim_lightning.metrics.networks import LOADERS
from ddim_lightning.metrics.pieces import Meter, Piece


@dataclass
class ClipMeasuring:
    """A `ClipMeasuring` is one clip being measured; a measure that fails costs none of the others.

    Args:
        meters: By what they are told of as.
        device: Where they work.
    """

    meters: dict[str, Meter]
    device: torch.device
    problems: list[str] = field(default_factory=list)
    """Sentences about measures that failed."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what was measured otherwise than one would think."""

    def add(self, piece: Piece) -> None:
        """Take in the next frames."""
        piece = piece.to(self.device)
        for name in list(self.meters):
            self._try(name, self.meters[name].add, piece)

    def read(self) -> dict[str, float]:
        """Return all that was measured, in the order of `MEASURES`."""
        found: dict[str, float] = {}
        for name in list(self.meters):
            found |= self._try(name, self.meters[name].read) or {}
        self.problems += [f"{name}: is no number (NaN)" for name, value in found.items() if math.isnan(value)]
        ordered = (name for measure in MEASURES.values() for name in measure.numbers)
        return {name: found[name] for name in ordered if name in found and not math.isnan(found[name])}

    def _try(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return measure(*arguments)
        except (RuntimeError, ValueError) as error:  # among them one of too little memory
            self.problems.append(f"{name}: {' '.join(str(error).split())}")
            del self.meters[name]
            return None


@dataclass(frozen=True)
class Measurer:
    """A `Measurer` measures clips; its networks stay loaded from clip to clip.

    Args:
        names: What is measured.
        device: Where it works.
        parts: The networks that are there, by their fields in `Networks`.
        missing: By the name of each measure that cannot be made, what it lacks.
    """

    names: tuple[str, ...]
    device: torch.device
    parts: Mapping[str, Any]
    missing: Mapping[str, str]

    def start(self, prompt: str | None = None) -> ClipMeasuring:
        """Begin with a clip, whose frames come in order.

        Args:
            prompt: What the video shows; ``None`` leaves out what compares it with a text.
        """
        meters: dict[str, Meter] = {}
        notes: list[str] = []
        # One meter a measure of pixels, so that frames that are too small for one of them are no matter to the others.
        for name in self._take("psnr", "ssim", "lpips", "five_psnr", "five_mse", "five_ssim", "five_lpips"):
            from ddim_lightning.metrics.pixels import PixelMeter

            meters[name] = PixelMeter([name], self.parts.get("lpips_weights"))
        if names := self._take("clip_text", "clip_frames", "five_clip"):
            from ddim_lightning.metrics.clip import ClipMeter

            clip = self.parts["clip_model"]
            meters[", ".join(names)] = ClipMeter(names, clip, prompt)
            if prompt is not None and (length := clip.count_tokens(prompt)) > clip.most_tokens:
                notes.append(f"prompt: CLIP reads its first {clip.most_tokens} tokens, got {length}")
        if names := self._take("warp_error", "flow_fidelity"):
            from ddim_lightning.metrics.flow import FlowMeter

            meters[", ".join(names)] = FlowMeter(names, self.parts["raft_weights"])
        if names := self._take("motion_fidelity", "five_motion"):
            from ddim_lightning.metrics.motion import TrackMeter

            meters[", ".join(names)] = TrackMeter(names, self.parts["tracker"], self.device)
        return ClipMeasuring(meters, self.device, notes=notes)

    def measure(self, pieces: Iterable[Piece], prompt: str | None = None) -> dict[str, float]:
        """Measure one clip.

        Args:
            pieces: Its frames in order, a few at a time.
            prompt: See `start`.

        Returns:
            The numbers by name; see `MEASURES`.

        Raises:
            ValueError: When a measure fails.
        """
        measuring = self.start(prompt)
        for piece in pieces:
            measuring.add(piece)
        numbers = measuring.read()
        if measuring.problems:
            raise ValueError("; ".join(measuring.problems))
        return numbers

    def _take(self, *names: str) -> list[str]:
        return [name for name in self.names if name in names]


def load_measurer(
    names: Iterable[str],
    networks: Networks = Networks(),  # noqa: B008, frozen
    device: torch.device | str = "cpu",
) -> Measurer:
    """Load what measures need from this machine; nothing is fetched.

    Args:
        names: Of measures of frames.
        networks: Where networks lie.
        device: Where they work.

    Returns:
        A measurer of those whose networks are here; `Measurer.missing` tells of the others.

    Raises:
        ValueError: A name that is not known.
    """
    names, device = check_measures(names, OF_FRAMES), torch.device(device)
    needed = dict.fromkeys(need for name in names for need in MEASURES[name].needs if need in LOADERS)
    parts, lacks = {}, {}
    for need in needed:
        try:
            parts[need] = LOADERS[need](getattr(networks, need), device)
        except (OSError, ValueError) as error:
            lacks[need] = " ".join(str(error).split())
    missing = {name: lacks[need] for name in names for need in MEASURES[name].needs if need in lacks}
    return Measurer(tuple(name for name in names if name not in missing), device, parts, missing)

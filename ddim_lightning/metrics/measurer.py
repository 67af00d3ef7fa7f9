"""A measurer loads the networks that measures need, from this machine alone, and measures clips with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddim_lightning.metrics.measures import LATENTS, MEASURES, Networks, check_measures
from ddim_lightning.metrics.pieces import Meter, Piece

CLIP = "openai/clip-vit-large-patch14"
"""The CLIP model that is looked for in the hub's cache where none is named: that of FiVE's evaluation."""
_CACHED: Mapping[str, Sequence[str]] = {
    "lpips_weights": ("alexnet-owt-7be5be79.pth", "squeezenet1_1-b8a52dc0.pth", "vgg16-397923af.pth"),
    "raft_weights": ("raft_large_C_T_SKHT_V2-ff5fadd5.pth", "raft_small_C_T_V2-01064c6d.pth"),
}
"""Files of https://download.pytorch.org/models by the names that torch's cache keeps them under."""


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
            self._try(name, lambda name=name: self.meters[name].add(piece))  # type: ignore[misc]

    def read(self) -> dict[str, float]:
        """Return all that was measured, in the order of `MEASURES`."""
        found: dict[str, float] = {}
        for name in list(self.meters):
            found |= self._try(name, self.meters[name].read) or {}
        return {name: found[name] for measure in MEASURES.values() for name in measure.numbers if name in found}

    def _try(self, name: str, measure: Callable[[], Any]) -> Any:
        try:
            return measure()
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
    names: Iterable[str], networks: Networks = Networks(), device: torch.device | str = "cpu"
) -> Measurer:  # noqa: B008, frozen
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
    names, device = check_measures(names, [name for name in MEASURES if name != LATENTS]), torch.device(device)
    loaders: dict[str, Callable[[str | None, torch.device], Any]] = {
        "lpips_weights": _load_lpips,
        "clip_model": _load_clip,
        "raft_weights": _load_raft,
        "tracker": _load_tracker,
    }
    needed = dict.fromkeys(need for name in names for need in MEASURES[name].needs if need in loaders)
    parts, lacks = {}, {}
    for need in needed:
        try:
            parts[need] = loaders[need](getattr(networks, need), device)
        except (OSError, ValueError) as error:
            lacks[need] = " ".join(str(error).split())
    missing = {name: lacks[need] for name in names for need in MEASURES[name].needs if need in lacks}
    return Measurer(tuple(name for name in names if name not in missing), device, parts, missing)


def _load_lpips(named: str | None, device: torch.device) -> Any:
    from ddim_lightning.metrics.lpips import Lpips

    return Lpips(_read_weights("lpips_weights", named), device)


def _load_raft(named: str | None, device: torch.device) -> Any:
    from ddim_lightning.metrics.flow import Raft

    return Raft(_read_weights("raft_weights", named), device)


def _load_clip(named: str | None, device: torch.device) -> Any:
    from transformers import CLIPModel, CLIPProcessor

    from ddim_lightning.metrics.clip import Clip

    name = CLIP if named is None else os.fspath(Path(named).expanduser())
    try:
        parts = [kind.from_pretrained(name, local_files_only=True) for kind in (CLIPModel, CLIPProcessor)]
    except Exception as error:  # transformers raises whatever it meets in a folder
        rule = "must be a folder of a CLIP model, or a hub id whose files are in the cache"
        raise ValueError(f"clip_model: {rule}, got {name!r}: {str(error).partition('. ')[0]}") from error
    return Clip(parts[0], parts[1], device)


def _load_tracker(named: str | None, device: torch.device) -> Any:
    folder = Path(named or "").expanduser()
    checkpoint = folder / "checkpoints" / "scaled_offline.pth"
    if named is None or not (folder / "hubconf.py").is_file() or not checkpoint.is_file():
        rule = "must be a clone of https://github.com/facebookresearch/co-tracker with checkpoints/scaled_offline.pth"
        raise FileNotFoundError(f"tracker: {rule}, got {named!r}")
    tracker: Any = torch.hub.load(str(folder), "cotracker3_offline", source="local", pretrained=False)
    tracker.model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return tracker.to(device).eval()


def _read_weights(option: str, named: str | None) -> dict[str, Tensor]:
    """Read the weights in a file, or in the first of torch's own cache where none is named."""
    cache = Path(torch.hub.get_dir(), "checkpoints")
    path = next((cache / name for name in _CACHED[option] if (cache / name).is_file()), None)
    path = path if named is None else Path(named).expanduser()
    if path is None or not path.is_file():
        rule = f"must name a file such as {' or '.join(_CACHED[option])} of https://download.pytorch.org/models"
        raise FileNotFoundError(f"{option}: {rule}, or {cache} must hold one, got {named!r}")
    try:
        weights = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # pickle raises whatever it meets
        raise ValueError(f"{option}: {path} must hold weights that can be read: {error}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{option}: {path} must hold the weights of a network by name, got {type(weights).__name__}")
    return dict(weights)

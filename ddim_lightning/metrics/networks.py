"""Networks of measures are loaded from this machine alone: from where the user says, or from the libraries' caches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

CLIP = "openai/clip-vit-large-patch14"
"""The CLIP model that is looked for in the hub's cache where none is named: that of FiVE's evaluation."""
_CACHED: Mapping[str, Sequence[str]] = {
    "lpips_weights": ("alexnet-owt-7be5be79.pth", "squeezenet1_1-b8a52dc0.pth", "vgg16-397923af.pth"),
    "raft_weights": ("raft_large_C_T_SKHT_V2-ff5fadd5.pth", "raft_small_C_T_V2-01064c6d.pth"),
}
"""Files of https://download.pytorch.org/models by the names that torch's cache keeps them under."""


def _load_lpips(named: str | None, device: torch.device) -> Any:
    from ddim_lightning.metrics.lpips import Lpips

    return Lpips(_read_weights("lpips_weights", named), device)


def _load_raft(named: str | None, device: torch.device) -> Any:
    from ddim_lightning.metrics.flow import Raft

    return Raft(_read_weights("raft_weights", named), device)


def _load_clip(named: str | None, device: torch.device) -> Any:
    from transformers import CLIPModel, CLIPProcessor
    from transformers.utils import logging

    from ddim_lightning.metrics.clip import Clip

    name = CLIP if named is None else os.fspath(Path(named).expanduser())
    bars: Any = logging  # it has no annotations
    shows_bar = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        model = CLIPModel.from_pretrained(name, local_files_only=True, use_safetensors=True)
        processor = CLIPProcessor.from_pretrained(name, local_files_only=True)
    except Exception as error:  # transformers raises whatever it meets in a folder
        rule = "must be a folder of a CLIP model with safetensors, or a hub id whose files are in this machine's cache"
        why = f": {str(error).partition(chr(10))[0]}" if Path(name).exists() else ""
        raise ValueError(f"clip_model: {rule}, got {name!r}{why}") from error
    finally:
        if shows_bar:
            bars.enable_progress_bar()
    return Clip(model, processor, device)


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
        rule = "must hold tensors by name, as safetensors or as torch.save writes them"
        raise ValueError(f"{option}: {path} {rule}, got what cannot be read as such") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{option}: {path} must hold the weights of a network by name, got {type(weights).__name__}")
    return dict(weights)


LOADERS: Mapping[str, Callable[[str | None, torch.device], Any]] = {
    "lpips_weights": _load_lpips,
    "clip_model": _load_clip,
    "raft_weights": _load_raft,
    "tracker": _load_tracker,
}
"""By the fields of `Networks`: what loads one, given that field and a device.

It raises an OSError or a ValueError, which names the field and what it lacks.
"""

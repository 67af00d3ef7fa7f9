"""Trajectories are kept in safetensors files, with a JSON record of what they belong to in the header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.parts import describe_part
from ddim_lightning.limits import count_latent_frames
from ddim_lightning.models.loading import Components
from ddim_lightning.network.adapters import EDIT_ADAPTER, describe_adapters
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.ignored import describe_switches
from ddim_lightning.network.quantized import QuantizedNetwork
from ddim_lightning.network.source_mark import SOURCE_MARK
from ddim_lightning.types import Clip, Latents, Step, StepCallback

_KEY = "ddim_lightning"
_SAMPLES = 64
"""Values of each weight that a digest of a model reads."""


def keep_levels(levels: list[Latents], tick: Callable[[], None]) -> StepCallback:
    """Return a callback that keeps the latents of every level beside ticking."""

    def keep(step: Step, latents: Latents) -> None:
        levels.append(latents)
        tick()

    return keep


def write_trajectory(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write the tensors of an inversion; the file appears whole or not at all, and equal input gives equal bytes.

    Args:
        path: The file; its folder must exist.
        tensors: What `Inversion.to_dict` returns.
        metadata: JSON-ready values: how the trajectory was made.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    # One key: safetensors writes several in the random order of a hash map, and the bytes would differ between runs.
    header = {_KEY: json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=header)
    os.replace(partial, target)


def read_trajectory(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_trajectory` wrote.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU, for `Inversion.from_dict`; and the metadata.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the safetensors file was written by something else.
    """
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if _KEY not in header:
            raise ValueError(f"path: must be a trajectory written by ddim_lightning, got {str(path)!r}")
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    return tensors, json.loads(header[_KEY])


def make_fingerprint(engine: InversionEngine, clip: Clip, prompt: str) -> dict[str, str]:
    """Describe what an inversion depends on, so that it is never used for anything else.

    Args:
        engine: The loaded model, with its schedule and inverter.
        clip: The clip as the model sees it.
        prompt: The text of the inversion.

    Returns:
        ``clip``, ``model``, ``schedule`` as digests; ``inverter`` and ``prompt`` in plain text, and so ``windows``
        where the clip takes several; ``switches`` as a digest where caches, hooks and the like act.
    """
    quantized = isinstance(engine.denoiser.network, QuantizedNetwork)
    fingerprint = {
        "clip": digest_tensor(clip.frames) + ("" if clip.latents is None else f" {digest_tensor(clip.latents)}"),
        "model": digest_model(engine.components, engine.device, quantized=quantized),
        "schedule": _digest_schedule(engine.schedule),
        "inverter": json.dumps(describe_part(engine.inverter), sort_keys=True),
        "prompt": prompt,
    }
    if engine.count_windows(count_latent_frames(len(clip.frames), engine.components.limits)) > 1:
        fingerprint["windows"] = repr(engine.denoiser.windows)
    if isinstance(engine.network, DiffusersNetwork) and (switches := describe_switches(engine.network.transformer)):
        fingerprint["switches"] = hashlib.sha256(switches.encode()).hexdigest()[:16]
    return fingerprint


def check_fingerprint(found: Mapping[str, str], wanted: Mapping[str, str], path: str) -> None:
    """Raise a ValueError that names the first thing a stored trajectory was made with and this run was not."""
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(f"trajectory_dir: {path} must be of this run's {name} {value!r}, got {found.get(name)!r}")


def digest_model(parts: Components, device: torch.device, *, quantized: bool = False) -> str:
    """Digest what of a model an inversion depends on: VAE, transformer, and how they run.

    Of each weight a few values, evenly spread, are read: a fine-tuned model differs in nearly all of them, and reading
    all of 11 GB would take longer than some inversions.

    Args:
        parts: The loaded model.
        device: Where it works; weights may be parked elsewhere.
        quantized: Whether inversions run in 8 bits.
    """
    digest = hashlib.sha256()
    for module in (parts.transformer, parts.vae):
        digest.update(f"{module.dtype}".encode() + _sample(module, device))
    digest.update(describe_adapters(parts.transformer).encode())  # no weight says how strongly they act
    if parts.vae.use_tiling:
        digest.update(b"tiling")
    if quantized:
        digest.update(b"fp8")
    return digest.hexdigest()[:16]


def digest_weights(module: nn.Module, device: torch.device) -> str:
    """Digest a few values of each weight of a module, gathered on a device."""
    return hashlib.sha256(_sample(module, device)).hexdigest()[:16]


def digest_tensor(tensor: Tensor) -> str:
    """Digest the shape and the bytes of a tensor on any device."""
    shape = repr(tuple(tensor.shape)).encode()
    return hashlib.sha256(shape + tensor.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _sample(module: nn.Module, device: torch.device) -> bytes:
    # What acts in edits alone is told apart from the model, whose layers it has renamed.
    named = {
        name.replace(".base_layer.", "."): weight.detach()
        for name, weight in module.state_dict().items()
        if weight.is_floating_point() and f".{EDIT_ADAPTER}." not in name and not name.startswith(SOURCE_MARK)
    }
    weights = [weight for _, weight in sorted(named.items())]
    # One copy from the device for all; parked weights are on the host.
    samples = [weight.flatten()[:: max(1, weight.numel() // _SAMPLES)].float().to(device) for weight in weights]
    return torch.cat(samples).cpu().numpy().tobytes()


def _digest_schedule(schedule: NoiseSchedule) -> str:
    return hashlib.sha256(repr((schedule.timesteps, schedule.angles)).encode()).hexdigest()[:16]

"""What a stored trajectory belongs to, so that it is never used for anything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.engine import InversionEngine
from ddim_lightning.specs import describe_part
from ddim_lightning.types import Frames

_SAMPLES = 64


def make_fingerprint(engine: InversionEngine, frames: Frames, prompt: str) -> dict[str, str]:
    """Describe what an inversion depends on.

    Args:
        engine: The loaded model, with its table and inverter.
        frames: The clip as the model sees it.
        prompt: The text of the inversion.

    Returns:
        ``clip``, ``model``, ``schedule`` as digests; ``inverter`` and ``prompt`` in plain text.
    """
    return {
        "clip": _digest_tensor(frames),
        "model": digest_model(engine),
        "schedule": _digest_table(engine.table),
        "inverter": json.dumps(describe_part(engine.inverter), sort_keys=True),
        "prompt": prompt,
    }


def check_fingerprint(found: Mapping[str, str], wanted: Mapping[str, str], path: str) -> None:
    """Raise a ValueError that names the first thing a stored trajectory was made with and this run was not."""
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(f"trajectories: {path} must be of this run's {name} {value!r}, got {found.get(name)!r}")


def digest_model(engine: InversionEngine) -> str:
    """Digest what of a model an inversion depends on: VAE, transformer, and how they run.

    Of each weight a few values, evenly spread, are read: a fine-tuned model differs in nearly all of them, and reading
    all of 11 GB would take longer than some inversions.
    """
    parts = engine.components
    digest = hashlib.sha256()
    for module in (parts.transformer, parts.vae):
        # One copy from the device for all; parked weights are on the host.
        samples = torch.cat([_sample(weight).to(engine.device) for weight in _weights(module)])
        digest.update(f"{module.dtype}".encode() + samples.cpu().numpy().tobytes())
    if parts.vae.use_tiling:
        digest.update(b"tiling")
    if engine.quantize_inversion:
        digest.update(engine.precision.encode())
    return digest.hexdigest()[:16]


def _weights(module: nn.Module) -> list[Tensor]:
    return [weight.detach() for _, weight in sorted(module.state_dict().items()) if weight.is_floating_point()]


def _sample(weight: Tensor) -> Tensor:
    return weight.flatten()[:: max(1, weight.numel() // _SAMPLES)].float()


def _digest_table(table: StepTable) -> str:
    return hashlib.sha256(repr((table.timesteps, table.angles)).encode()).hexdigest()[:16]


def _digest_tensor(tensor: Tensor) -> str:
    shape = repr(tuple(tensor.shape)).encode()
    return hashlib.sha256(shape + tensor.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]

"""How a benchmark comes by a model, its engines and its inputs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from ddim_lightning.diffusion.editors import Editor, FlowEdit, KVInjection
from ddim_lightning.diffusion.inverters import Inverter, UniInv
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.models.text import PromptEncoder
from ddim_lightning.network.kernels import resolve_attention
from ddim_lightning.models.loading import Components, load_components
from benchmarks.published import make_random_5b
from ddim_lightning.network.quantized import Precision
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.runtime.allocator import keep_freed_memory
from ddim_lightning.runtime.compile import apply_compile
from ddim_lightning.types import VideoLimits

TINY, FULL_SIZE = "tiny", "CogVideoX-5B's architecture, random weights"
"""What a result calls the two models."""
PROMPTS = (
    "a blue square moving left on a yellow background",
    "a green cross moving up on a black background",
    "a red circle moving right on a gray background",
    "a pink triangle moving down on a teal background",
)
"""Texts of the edits: words that both tokenizers know."""


def build_engine(model: str, num_inference_steps: int) -> InversionEngine:
    """Load a model onto the CPU in float32, with the default inverter and K/V injection.

    Args:
        model: ``tiny`` or a folder.
        num_inference_steps: Steps of its schedule.
    """
    parts = load_components(model, device=torch.device("cpu"), dtype=torch.float32)
    return make_engine(parts, num_inference_steps, editor=KVInjection())


def name_model(args: argparse.Namespace) -> str:
    """Return what a result calls the model that the arguments ask for."""
    return FULL_SIZE if args.full_size else TINY


def load_parts(args: argparse.Namespace, on_host: Sequence[str] = ()) -> Components:
    """Load the tiny model, or make the 5B architecture with random weights.

    On a CPU the process works with one thread from here on, which other programs disturb least, and keeps freed memory,
    as the command line does.

    Args:
        args: ``full_size``, ``device``, ``dtype`` and ``seed``.
        on_host: Parts that stay on the host for now; random weights are drawn on the device all the same.
    """
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    if args.full_size:
        return make_random_5b(device=device, dtype=dtype, seed=args.seed)
    return load_components("tiny", device=device, dtype=dtype, on_host=on_host)


def make_engine(
    parts: Components,
    num_inference_steps: int,
    *,
    inverter: Inverter | None = None,
    editor: Editor | None = None,
    attention: str = "auto",
    precision: Precision = "none",
    compiled: bool = False,
) -> InversionEngine:
    """Make an engine of a loaded model; several may share one.

    Args:
        parts: The model.
        num_inference_steps: Steps of its schedule.
        inverter: `UniInv`, the default, where there is none.
        editor: `FlowEdit`, the default, where there is none.
        attention: Name of the kernel.
        precision: Of the large products while edits are made.
        compiled: Whether blocks are compiled.
    """
    assert parts.tokenizer is not None
    assert parts.text_encoder is not None
    engine = InversionEngine(
        parts,
        PromptEncoder(parts.tokenizer, parts.text_encoder, parts.transformer.config.max_text_seq_length),
        make_noise_schedule(parts.scheduler, num_inference_steps),
        UniInv() if inverter is None else inverter,
        FlowEdit() if editor is None else editor,
        attention=resolve_attention(attention, parts.transformer.device),
        precision=precision,
    )
    if compiled:
        for network in (engine.network, engine.quantized):
            if network is not None:
                apply_compile(network, True)
    return engine


def make_video(limits: VideoLimits, seed: int) -> Tensor:
    """Make noise, (1, f, 3, h, w) uint8, at the model's own size."""
    size = (1, limits.num_frames, 3, limits.height, limits.width)
    return torch.randint(256, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)

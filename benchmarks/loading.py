"""The models, engines and inputs of the benchmarks are made here."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import T5EncoderModel

from ddim_lightning.diffusion.editors import Editor, InContextEdit, KVInjection
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.engine.build import make_engine as assemble_engine
from ddim_lightning.engine.config import Forward, Offload, Precision, Runtime, Schedule, make_loras
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.parts import make_part
from ddim_lightning.engine.recommended import read_recommended
from ddim_lightning.limits import VideoLimits
from ddim_lightning.models.loading import Components, load_components, load_text_encoder
from ddim_lightning.models.text import PromptEncoder
from ddim_lightning.runtime.allocator import keep_freed_memory

from .published import make_random_5b, make_random_t5_xxl

TINY, FULL_SIZE = "tiny", "CogVideoX-5B's architecture, random weights"
"""What a result calls the two models."""
PROMPTS = (
    "a blue square moving left on a yellow background",
    "a green cross moving up on a black background",
    "a red circle moving right on a gray background",
    "a pink triangle moving down on a teal background",
)
"""Texts of the edits: words that both tokenizers know."""

_RECOMMENDED = read_recommended(TINY)
INVERTER: Inverter = make_part(_RECOMMENDED["inverter"], Inverter, "ddim_lightning.diffusion.inverters", "inverter")
EDITOR: Editor = make_part(_RECOMMENDED["editor"], Editor, "ddim_lightning.diffusion.editors", "editor")
GUIDANCE_SCALE: float = _RECOMMENDED["guidance_scale"]
"""What is recommended for the tiny model, and measured as the default."""


def load_engine(model: str, num_inference_steps: int, lora: str | None = None) -> InversionEngine:
    """Load a model onto the CPU in float32, with the recommended inverter and K/V injection.

    Args:
        model: ``tiny`` or a folder.
        num_inference_steps: Steps of its schedule.
        lora: An adapter that acts in edits, which are then in context.
    """
    parts = load_components(model, device=torch.device("cpu"), dtype=torch.float32)
    editor = KVInjection() if lora is None else InContextEdit()
    return make_engine(parts, num_inference_steps, editor=editor, lora=[] if lora is None else [lora])


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


def copy_parts(parts: Components) -> Components:
    """Return a model with a transformer of its own, for what changes it in place."""
    return Components(**{**vars(parts), "transformer": copy.deepcopy(parts.transformer)})


def make_prompts(parts: Components, device: torch.device, seed: int = 0) -> PromptEncoder:
    """Make the prompt encoder of a loaded model; that of random weights is random, too.

    Args:
        parts: The model.
        device: Where embeddings go.
        seed: Seed of random weights.
    """
    where: dict[str, Any] = {"dtype": parts.transformer.dtype}

    def load(device: torch.device) -> T5EncoderModel:
        if parts.checkpoint is None:
            return make_random_t5_xxl(device=device, seed=seed, **where)
        return load_text_encoder(parts.checkpoint, device=device, **where)

    return PromptEncoder(parts.tokenizer, load, parts.transformer.config.max_text_seq_length, device)


def make_engine(
    parts: Components,
    num_inference_steps: int,
    *,
    prompts: PromptEncoder | None = None,
    inverter: Inverter = INVERTER,
    editor: Editor = EDITOR,
    device: torch.device | None = None,
    attention: str = "auto",
    precision: Precision = "none",
    step_cache: float | None = None,
    compiled: bool = False,
    offload: Offload = "none",
    forward: Forward = "fused",
    lora: Sequence[str] = (),
) -> InversionEngine:
    """Make an engine of a loaded model; several may share one, and its prompt encoder.

    Args:
        parts: The model.
        num_inference_steps: Steps of its schedule.
        prompts: Its prompt encoder; made where there is none.
        inverter: The inversion method.
        editor: The editing method.
        device: Where it works; where its weights are if ``None``.
        attention: Name of the kernel.
        precision: Precision of the large products while edits are made.
        step_cache: Threshold of the step cache of edits.
        compiled: Whether blocks are compiled.
        offload: What waits in host memory.
        forward: Which forward pass runs; that of diffusers changes the processors, and compiled ones the blocks.
        lora: LoRA files, which change the transformer in place.
    """
    device = device or parts.transformer.device
    return assemble_engine(
        parts,
        prompts or make_prompts(parts, device),
        inverter,
        editor,
        device,
        schedule=Schedule(num_inference_steps=num_inference_steps),
        # As the weights are laid out already; nothing of the VAE is changed here.
        runtime=Runtime(
            attention=attention,
            forward=forward,
            precision=precision,
            step_cache=step_cache,
            compile=compiled,
            offload=offload,
            channels_last=False,
        ),
        lora=make_loras(lora),
    )


def make_video(limits: VideoLimits, seed: int) -> Tensor:
    """Make noise, (1, f, 3, h, w) uint8, at the model's own size."""
    size = (1, limits.num_frames, 3, limits.height, limits.width)
    return torch.randint(256, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)

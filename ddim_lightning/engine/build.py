"""One builder makes a loaded engine from options; each switch of the runtime is applied from outside."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import T5EncoderModel

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.diffusion.windows import Windows
from ddim_lightning.engine.config import Offload, Runtime, Schedule
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.export import ArtifactNetwork
from ddim_lightning.engine.trajectory import digest_model
from ddim_lightning.models.loading import Components, load_components, load_text_encoder
from ddim_lightning.models.prompt_cache import PromptCache, digest_text_encoder
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.models.text import PromptEncoder
from ddim_lightning.models.vae import order_channels_last, use_tiles
from ddim_lightning.network.denoiser import CogVideoXDenoiser, RunsRows
from ddim_lightning.network.kernels import resolve_attention
from ddim_lightning.network.network import Network
from ddim_lightning.network.quantized import QuantizedNetwork, check_fp8
from ddim_lightning.network.weights import gather_block, gather_norms, place_block, place_norms
from ddim_lightning.runtime.compile import apply_compile, apply_vae_compile
from ddim_lightning.runtime.compile_cache import load_compiled
from ddim_lightning.runtime.host_memory import HostCopy
from ddim_lightning.runtime.offload import Parkable, ParkedModule, Placement
from ddim_lightning.runtime.streaming import WeightStream
from ddim_lightning.types import VideoLimits, count_latent_frames

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def build_engine(
    model: str,
    inverter: Inverter,
    editor: Editor,
    device: torch.device,
    *,
    schedule: Schedule | None = None,
    runtime: Runtime | None = None,
    inversion_prompt: str | None = "",
) -> InversionEngine:
    """Load a model onto a device, ready to work.

    Args:
        model: ``tiny``, a folder, or a hub id.
        inverter: The inversion method.
        editor: The editing method.
        device: Where the model works.
        schedule: The noise levels; ``None`` is `Schedule`'s defaults.
        runtime: How the model runs; ``None`` is `Runtime`'s defaults.
        inversion_prompt: The prompt of inversions; ``None`` where each clip brings its own.

    Raises:
        ValueError: An option that does not fit the model or the device; see also `load_components`.
        OSError: The model cannot be read, likewise.
    """
    schedule, runtime = schedule or Schedule(), runtime or Runtime()
    default = "float32" if device.type == "cpu" else "bfloat16"
    dtype = DTYPES[default if runtime.dtype == "auto" else runtime.dtype]
    resolve_attention(runtime.attention, device)  # a kernel that is not there is found out before gigabytes are read
    if runtime.precision == "fp8":
        check_fp8(device)
    on_host = ("transformer", "vae") if runtime.offload != "none" else ()
    parts = load_components(
        model,
        device=device,
        dtype=dtype,
        require_rotary=runtime.require_rotary,
        on_host=on_host if runtime.exported is None else ("transformer",),
    )
    prompts = _make_prompt_encoder(model, parts, runtime, device)
    return make_engine(
        parts, prompts, inverter, editor, device, schedule=schedule, runtime=runtime, inversion_prompt=inversion_prompt
    )


def make_engine(
    parts: Components,
    prompts: PromptEncoder,
    inverter: Inverter,
    editor: Editor,
    device: torch.device,
    *,
    schedule: Schedule,
    runtime: Runtime,
    inversion_prompt: str | None = "",
) -> InversionEngine:
    """Make an engine of a model that is loaded already, and apply the switches of the runtime to it.

    Args:
        parts: The loaded model.
        prompts: Its prompt encoder.
        inverter: The inversion method.
        editor: The editing method.
        device: Where the model works; with an ``offload`` its weights may lie on the host.
        schedule: The noise levels.
        runtime: How the model runs.
        inversion_prompt: The prompt of inversions; ``None`` where each clip brings its own.

    Raises:
        ValueError: An option that does not fit the model or the device.
    """
    steps = make_noise_schedule(
        parts.scheduler,
        schedule.num_inference_steps,
        spacing=schedule.timestep_spacing,
        zero_snr=schedule.zero_snr,
    )
    editor.check(len(parts.transformer.transformer_blocks), len(steps))
    if runtime.compile_cache is not None:
        load_compiled(Path(runtime.compile_cache).expanduser())
    _prepare_vae(parts, runtime, device)
    network = Network(parts.transformer, resolve_attention(runtime.attention, device))
    quantized = QuantizedNetwork(network) if runtime.precision == "fp8" else None
    placement = apply_offload(parts, network, runtime.offload, device)
    if runtime.compile:
        for one in filter(None, (network, quantized)):
            apply_compile(one, runtime.compile)
    exact: RunsRows = network
    if runtime.exported is not None:
        # Artifacts hold weights of their own, so that the transformer stays on the host.
        placement = Placement(torch.empty(0, device=device).device, {"transformer": (), "vae": ()})
        exact = ArtifactNetwork(Path(runtime.exported).expanduser(), placement.device)
        exact.check(digest_model(parts, placement.device))
    elif quantized is not None and runtime.quantize_inversion:
        exact = quantized
    windows = make_windows(parts.limits, runtime.window_overlap)
    denoiser = edit_denoiser = CogVideoXDenoiser(exact, prompts, windows)
    if quantized is not None and exact is not quantized:
        edit_denoiser = CogVideoXDenoiser(quantized, prompts, windows)
    if placement is not None:
        prompts.before_load = lambda: placement.use(None)  # makes room for the text encoder
    return InversionEngine(
        parts, prompts, steps, inverter, editor, network, denoiser, edit_denoiser, inversion_prompt, placement
    )


def make_windows(limits: VideoLimits, overlap: float) -> Windows:
    """Make the windows of clips that are longer than a model takes at once; see `Runtime.window_overlap`."""
    length = count_latent_frames(limits.num_frames, limits)
    return Windows(length, min(1 + round(overlap * length), length - 1))


def apply_offload(parts: Components, network: Network, offload: Offload, device: torch.device) -> Placement | None:
    """Let weights that are not at work wait in host memory; results are the same bytes.

    ``none`` leaves everything on the device. ``model`` keeps either the VAE or the transformer there, whichever works,
    and the other in host memory. ``blocks`` does so with the VAE, and of the transformer's blocks keeps two at a time:
    each comes from host memory while the one before it computes. The text encoder is left alone.

    Args:
        parts: The loaded model, changed in place. Its weights are frozen, and do not change while it is used.
        network: The forward pass over its transformer.
        offload: What waits.
        device: Where the model works; parts on the host come to it when they work.

    Returns:
        What brings the weights to the device; ``None`` where all stay there.
    """
    if offload == "none":
        return None
    device = torch.empty(0, device=device).device  # with its index
    transformer: list[Parkable]
    if offload == "model":
        _ = network.blocks  # makes query, key and value one matrix before the weights get their place
        transformer = [ParkedModule(parts.transformer, device, network.clear_cache)]
    else:
        transformer = list(_stream_blocks(network, device))
    placement = Placement(device, {"vae": [ParkedModule(parts.vae, device)], "transformer": transformer})
    network.before_pass = lambda: placement.use("transformer")
    return placement


@torch.inference_mode(False)
def _stream_blocks(network: Network, device: torch.device) -> tuple[Parkable, Parkable]:
    """Let a network stream its blocks from the host; what is not in a block moves to the device and stays there."""
    blocks, norms = [], []
    for block in network.transformer.transformer_blocks:
        blocks.append(HostCopy(gather_block(block), device))
        place_block(block, blocks[-1].weights)
        # What a timestep decides is remembered, so these travel once a timestep and not in every pass.
        norms.append(HostCopy(gather_norms(block), device))
        place_norms(block, norms[-1].weights)
    for name, child in network.transformer.named_children():
        if name != "transformer_blocks":
            child.to(device)
    streams = WeightStream(blocks, device), WeightStream(norms, device)
    network.stream(*streams)
    return streams


def _prepare_vae(parts: Components, runtime: Runtime, device: torch.device) -> None:
    if device.type == "cuda" if runtime.channels_last is None else runtime.channels_last:
        order_channels_last(parts.vae)
    if runtime.vae_tiling:
        use_tiles(parts.vae)
    if runtime.compile_vae:
        apply_vae_compile(parts.vae)


def _make_prompt_encoder(model: str, parts: Components, runtime: Runtime, device: torch.device) -> PromptEncoder:
    dtype = parts.transformer.dtype
    cache = None
    if runtime.prompt_cache is not None:
        assert parts.folder is not None
        cache = PromptCache(Path(runtime.prompt_cache).expanduser(), digest_text_encoder(parts.folder), dtype)

    def load(where: torch.device) -> T5EncoderModel:
        return load_text_encoder(model, device=where, dtype=dtype)

    return PromptEncoder(parts.tokenizer, load, parts.transformer.config.max_text_seq_length, device, cache)

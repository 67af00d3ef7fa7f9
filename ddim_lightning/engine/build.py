"""One builder makes a loaded engine from options; each switch of the runtime is applied from outside."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import T5EncoderModel

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.windows import Windows
from ddim_lightning.engine.adapters import add_loras, check_before_loading, find_adapters
from ddim_lightning.engine.artifacts import holds_blocks
from ddim_lightning.engine.config import Lora, Offload, Runtime, Schedule, Source
from ddim_lightning.engine.editor_rules import check_for_artifacts, check_for_block_artifacts, check_for_diffusers
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.export import ArtifactNetwork
from ddim_lightning.engine.export_blocks import BlockArtifacts
from ddim_lightning.engine.prompts import make_prompt_encoder
from ddim_lightning.engine.recommended import read_recommended
from ddim_lightning.engine.rows import FittingRows
from ddim_lightning.engine.trajectory import digest_model
from ddim_lightning.limits import VideoLimits, count_latent_frames
from ddim_lightning.models.checkpoint import read_checkpoint
from ddim_lightning.models.loading import Components, load_components, load_tokenizer
from ddim_lightning.models.schedulers import adopt_scheduler, make_noise_schedule
from ddim_lightning.models.text import PromptEncoder
from ddim_lightning.models.vae import order_channels_last, use_tiles
from ddim_lightning.network.adapters import has_adapter
from ddim_lightning.network.denoiser import CogVideoXDenoiser, RunsRows
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.kernels import resolve_attention
from ddim_lightning.network.network import Network
from ddim_lightning.network.quantized import QuantizedNetwork, check_fp8
from ddim_lightning.network.split_rows import SplitRows
from ddim_lightning.network.split_tokens import SplitTokens
from ddim_lightning.network.weights import gather_block, gather_norms, place_block, place_norms
from ddim_lightning.runtime.clip_group import ClipGroup, check_size
from ddim_lightning.runtime.compile import apply_compile, apply_vae_compile
from ddim_lightning.runtime.compile_cache import load_compiled
from ddim_lightning.runtime.host_memory import HostCopy, HostMemory
from ddim_lightning.runtime.offload import Parkable, ParkedModule, Placement
from ddim_lightning.runtime.streaming import WeightStream

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class LoadedModel:
    """A `LoadedModel` is a model that somebody has loaded already.

    Args:
        parts: The diffusers objects.
        text_encoder: The text encoder.
    """

    parts: Components
    text_encoder: T5EncoderModel


def build_engine(
    model: str | LoadedModel,
    inverter: Inverter,
    editor: Editor,
    device: torch.device,
    *,
    schedule: Schedule | None = None,
    runtime: Runtime | None = None,
    source: Source | None = None,
    lora: Sequence[Lora] = (),
    inversion_prompt: str | None = "",
    token: str | None = None,
    first_prompts: Iterable[object] = (),
) -> InversionEngine:
    """Load a model onto a device, ready to work.

    Args:
        model: ``tiny``, a folder, a hub id, or a model that is loaded already, which moves to the device.
        inverter: The inversion method.
        editor: The editing method.
        device: Where the model works.
        schedule: The noise levels; ``None`` is `Schedule`'s defaults.
        runtime: How the model runs; ``None`` is `Runtime`'s defaults.
        source: Where a model that is named comes from; ``None`` is `Source`'s defaults.
        lora: What is added to the transformer's weights, and what acts in edits; a model that is loaded already is
            changed in place.
        inversion_prompt: The prompt of inversions; ``None`` where each clip brings its own.
        token: Of the hub; ``None`` takes what ``HF_TOKEN`` or a login says. It is kept nowhere.
        first_prompts: Prompts of a model that is named. They are encoded, as far as they can be, before the rest of it
            is loaded: its text encoder is gone by then, and the device never holds both.

    Raises:
        ValueError: An option that does not fit the model or the device; see also `load_components`.
        OSError: The model cannot be read, likewise.
    """
    schedule, runtime = schedule or Schedule(), runtime or Runtime()
    default = "float32" if device.type == "cpu" else "bfloat16"
    dtype = DTYPES[default if runtime.dtype == "auto" else runtime.dtype]
    resolve_attention(runtime.attention, device)  # a kernel that is not there is found out before gigabytes are read
    check_size(runtime.ranks_per_clip)
    if runtime.precision == "fp8":
        check_fp8(device)
    find_adapters(lora)
    on_host: Collection[str] = ("transformer", "vae") if runtime.offload != "none" else ()
    on_host = on_host if runtime.exported is None or holds_blocks(runtime.exported) else ("transformer",)
    if isinstance(model, LoadedModel):
        if token is not None or (source is not None and source != Source()):
            raise ValueError("source and token: must be unset for a model that is loaded already, got one of them")
        parts = _place_loaded(model, runtime, device, on_host)
        config, dtype = parts.transformer.config, parts.transformer.dtype
        prompts = make_prompt_encoder(model.text_encoder, parts.tokenizer, config, runtime, device, dtype)
    else:
        source = source or Source()
        if lora:
            found = read_checkpoint(model, source, token=token, **runtime.requires)
            check_before_loading(lora, found.configs["transformer"], model)
        checkpoint = read_checkpoint(model, source, weights=True, token=token, **runtime.requires)
        config, tokenizer = checkpoint.configs["transformer"], load_tokenizer(checkpoint)
        prompts = make_prompt_encoder(checkpoint, tokenizer, config, runtime, device, dtype)
        prompts.prepare_all(first_prompts)
        prompts.release()
        parts = load_components(checkpoint, device=device, dtype=dtype, on_host=on_host, tokenizer=tokenizer)
    return make_engine(
        parts,
        prompts,
        inverter,
        editor,
        device,
        schedule=schedule,
        runtime=runtime,
        lora=lora,
        inversion_prompt=inversion_prompt,
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
    lora: Sequence[Lora] = (),
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
        lora: What is added to the transformer's weights, in place, and what acts in edits.
        inversion_prompt: The prompt of inversions; ``None`` where each clip brings its own.

    Raises:
        ValueError: An option that does not fit the model or the device.
    """
    steps = _make_steps(parts, schedule)
    editor.check(len(parts.transformer.transformer_blocks), len(steps))
    if runtime.compile_cache is not None:
        load_compiled(Path(runtime.compile_cache).expanduser())
    attention = resolve_attention(runtime.attention, device)
    # After all that may be refused: a model that somebody has loaded would take the files twice with the next try.
    name = "the loaded model" if parts.checkpoint is None else parts.checkpoint.model
    adapter = add_loras(parts.transformer, lora, editor, name)
    _prepare_vae(parts, runtime)
    group, windows = ClipGroup(runtime.ranks_per_clip), make_windows(parts.limits, runtime.window_overlap)
    make = partial(
        InversionEngine,
        parts,
        prompts,
        steps,
        inverter,
        editor,
        inversion_prompt=inversion_prompt,
        adapter=adapter,
        step_cache=runtime.step_cache,
    )
    if runtime.forward == "diffusers":
        check_for_diffusers(editor)
        if runtime.compile:
            for block in parts.transformer.transformer_blocks:
                block.compile(mode=None if runtime.compile is True else runtime.compile)
        theirs = DiffusersNetwork(parts.transformer, attention, runtime.context)
        split = SplitTokens if runtime.ranks_split == "tokens" else SplitRows
        denoiser = CogVideoXDenoiser(theirs, prompts, windows, group, split)
        return make(network=theirs, denoiser=denoiser, edit_denoiser=denoiser)
    network = Network(parts.transformer, attention, runtime.context)
    quantized = QuantizedNetwork(network) if runtime.precision == "fp8" else None
    placement = apply_offload(parts, network, runtime.offload, device)
    for one in filter(None, (network, quantized)):
        one.choose_rows = FittingRows(parts.transformer.config, runtime.rows_per_pass)
        if runtime.compile:
            apply_compile(one, runtime.compile)
    exact: RunsRows = network
    if runtime.exported is not None and holds_blocks(runtime.exported):
        check_for_block_artifacts(editor)
        BlockArtifacts(Path(runtime.exported).expanduser(), device, parts.transformer.dtype).apply(network)
    elif runtime.exported is not None:
        # Artifacts hold weights of their own, so that the transformer stays on the host.
        check_for_artifacts(editor)
        placement = Placement(torch.empty(0, device=device).device, {"transformer": (), "vae": ()})
        exact = ArtifactNetwork(Path(runtime.exported).expanduser(), placement.device)
        exact.check(digest_model(parts, placement.device))
    elif quantized is not None and runtime.quantize_inversion:
        exact = quantized
    denoiser = edit_denoiser = CogVideoXDenoiser(exact, prompts, windows, group, merges=runtime.exported is None)
    if quantized is not None and exact is not quantized:
        edit_denoiser = CogVideoXDenoiser(quantized, prompts, windows, group)
    if placement is not None:
        prompts.before_load = lambda: placement.use(None)  # makes room for the text encoder
    return make(network=network, denoiser=denoiser, edit_denoiser=edit_denoiser, placement=placement)


def replace_scheduler(engine: InversionEngine, scheduler: Any, schedule: Schedule) -> InversionEngine:
    """Return the engine on the noise levels of another scheduler; both share everything else.

    Args:
        engine: The engine.
        scheduler: See `adopt_scheduler`.
        schedule: Which of the levels are passed through.

    Raises:
        ValueError: A scheduler that is refused, or too few steps for the editor.
    """
    sampler, inverse = adopt_scheduler(scheduler)
    parts = replace(engine.components, scheduler=sampler, inverse_scheduler=inverse)
    steps = _make_steps(parts, schedule)
    engine.editor.check(len(parts.transformer.transformer_blocks), len(steps))
    return replace(engine, components=parts, schedule=steps)


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
    adapted = [layer for layer in network.transformer.transformer_blocks.modules() if has_adapter(layer)]
    if any(not layer.merged and not layer.disable_adapters for layer in adapted):
        rule = "blocks are copied with the adapters in them; must be none or model, or the adapters fused and unloaded"
        raise ValueError(f"offload: {rule}, got 'blocks'")
    memory = HostMemory.make_for(network.transformer.transformer_blocks.parameters())
    for block in network.transformer.transformer_blocks:
        blocks.append(HostCopy(gather_block(block), device, memory))
        place_block(block, blocks[-1].weights)
        # What a timestep decides is remembered, so these travel once a timestep and not in every pass.
        norms.append(HostCopy(gather_norms(block), device, memory))
        place_norms(block, norms[-1].weights)
    for layer in adapted:  # what may be switched on is added to the blocks once they are on the device
        for name in layer.adapter_layer_names:
            getattr(layer, name).to(device)
    for name, child in network.transformer.named_children():
        if name != "transformer_blocks":
            child.to(device)
    streams = WeightStream(blocks, device), WeightStream(norms, device)
    network.stream(*streams)
    return streams


def _make_steps(parts: Components, schedule: Schedule) -> NoiseSchedule:
    return make_noise_schedule(
        parts.scheduler,
        schedule.num_inference_steps or read_recommended("")["num_inference_steps"],
        spacing=schedule.timestep_spacing,
        zero_snr=schedule.zero_snr,
    )


def _prepare_vae(parts: Components, runtime: Runtime) -> None:
    if runtime.channels_last:
        order_channels_last(parts.vae)
    if runtime.vae_tiling:
        use_tiles(parts.vae)
    if runtime.compile_vae:
        apply_vae_compile(parts.vae)


def _place_loaded(model: LoadedModel, runtime: Runtime, device: torch.device, on_host: Collection[str]) -> Components:
    """Move a loaded model to where it will work, and check what was asked for against what it is."""
    parts, found = model.parts, str(model.parts.transformer.dtype).removeprefix("torch.")
    if runtime.dtype not in ("auto", found):
        rule = f"must be auto, or {found} as the loaded model is, also by a Trainer's precision"
        raise ValueError(f"dtype: {rule}, got {runtime.dtype!r}")
    if runtime.prompt_cache is not None:
        raise ValueError(f"prompt_cache: must be unset for a model without files, got {runtime.prompt_cache!r}")
    for name in ("transformer", "vae"):
        part = getattr(parts, name)
        where = torch.device("cpu") if name in on_host else device
        if part.device != where:
            nn.Module.to(part, where)
    return parts

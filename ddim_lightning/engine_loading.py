"""From plain options to a loaded engine: the model on its device, each switch of the runtime applied from outside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.artifacts import ArtifactNetwork
from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.engine import InversionEngine
from ddim_lightning.memory_presets import apply_memory, list_parts_on_host
from ddim_lightning.models.conditioning import PromptEncoder
from ddim_lightning.models.embeddings import EmbeddingStore, digest_text_encoder
from ddim_lightning.models.kernels import resolve_attention
from ddim_lightning.models.loading import load_components
from ddim_lightning.models.quantized import check_precision
from ddim_lightning.models.schedulers import make_step_table
from ddim_lightning.models.vae import order_channels_last, use_tiles
from ddim_lightning.options import DTYPES
from ddim_lightning.runtime.compile import apply_compile, apply_vae_compile
from ddim_lightning.runtime.compile_cache import load_compiled
from ddim_lightning.runtime.memory import Placement


def load_engine(
    options: Mapping[str, Any], inverter: Inverter, editor: Editor, device: torch.device
) -> InversionEngine:
    """Load a model onto a device, ready to work.

    Args:
        options: Those of `DDIMInversionModule`, by name; checked.
        inverter: The way up.
        editor: How new prompts meet the trajectory.
        device: Where the model works.

    Raises:
        ValueError: An option that does not fit the model or the device; see also `load_components`.
        OSError: The model cannot be read, likewise.
    """
    default = "float32" if device.type == "cpu" else "bfloat16"
    dtype = DTYPES[default if options["dtype"] == "auto" else options["dtype"]]
    attention = resolve_attention(options["attention"], device)
    check_precision(options["precision"], device)
    parts = load_components(
        options["model"],
        device=device,
        dtype=dtype,
        require_rotary=options["require_rotary"],
        on_host=list_parts_on_host(options["memory"]) if options["runtime"] is None else ("transformer",),
        text_encoder=options["embeddings"] is None,
    )
    table = make_step_table(
        parts.scheduler,
        options["num_inference_steps"],
        spacing=options["timestep_spacing"],
        zero_snr=options["zero_snr"],
    )
    editor.check(len(parts.transformer.transformer_blocks), len(table))
    assert parts.tokenizer is not None
    assert parts.folder is not None
    store = None
    if options["embeddings"] is not None:
        store = EmbeddingStore(_find(options["embeddings"]), digest_text_encoder(parts.folder), device, dtype)
    max_length = parts.transformer.config.max_text_seq_length
    prompts = PromptEncoder(parts.tokenizer, parts.text_encoder, max_length, store)
    engine = InversionEngine(
        parts, prompts, table, inverter, editor, options["inversion_prompt"], attention,
        precision=options["precision"], quantize_inversion=options["quantize_inversion"],
    )  # fmt: skip
    if device.type == "cuda" if options["channels_last"] is None else options["channels_last"]:
        order_channels_last(parts.vae)
    if options["vae_tiling"]:
        use_tiles(parts.vae)
    apply_memory(engine, options["memory"], device)
    _compile(engine, options)
    if options["runtime"] is not None:
        _use_artifacts(engine, _find(options["runtime"]), device)
    return engine


def _use_artifacts(engine: InversionEngine, folder: Path, device: torch.device) -> None:
    """Let artefacts, which hold weights of their own, stand in for the transformer, which stays on the host."""
    artifacts = ArtifactNetwork(folder, device)
    engine.placement = Placement(torch.empty(0, device=device).device, {"transformer": (), "vae": ()})
    artifacts.check(engine)
    engine.denoiser.network = artifacts


def _compile(engine: InversionEngine, options: Mapping[str, Any]) -> None:
    if options["compile_cache"] is not None:
        load_compiled(_find(options["compile_cache"]))
    if options["compile"]:
        apply_compile(engine.network, options["compile"])
        if engine.quantized is not None:
            apply_compile(engine.quantized, options["compile"])
    if options["compile_vae"]:
        apply_vae_compile(engine.components.vae)


def _find(folder: str) -> Path:
    return Path(folder).expanduser()

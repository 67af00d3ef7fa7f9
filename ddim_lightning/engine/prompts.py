"""A model's prompt encoder is made without the rest of the model: prompts can be encoded before that is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ddim_lightning.engine.config import Runtime
from ddim_lightning.models.checkpoint import Checkpoint
from ddim_lightning.models.loading import load_text_encoder
from ddim_lightning.models.prompt_cache import PromptCache, digest_text_encoder, find_text_encoder
from ddim_lightning.models.text import PromptEncoder
from ddim_lightning.runtime.offload import StreamedModule


def make_prompt_encoder(
    where_from: Checkpoint | T5EncoderModel,
    tokenizer: PreTrainedTokenizerBase | None,
    config: Mapping[str, Any],
    runtime: Runtime,
    device: torch.device,
    dtype: torch.dtype,
) -> PromptEncoder:
    """Make the prompt encoder of a model; no weights are loaded yet.

    With an ``offload`` the text encoder stays on the host, and its layers come to the device one at a time.

    Args:
        where_from: The model as it was read, or a text encoder that somebody has loaded already.
        tokenizer: Of the text encoder; ``None`` where it was left out.
        config: Of the transformer.
        runtime: How the model runs.
        device: Where the text encoder works.
        dtype: Of its weights, where they are loaded.

    Raises:
        ValueError: A ``prompt_cache`` that does not fit the model.
    """
    length = config.get("max_text_seq_length", 226)  # diffusers' default
    given = None if isinstance(where_from, Checkpoint) else where_from
    cache = None
    if isinstance(where_from, Checkpoint) and runtime.prompt_cache is not None:
        folder = Path(runtime.prompt_cache).expanduser()
        if where_from.has_text_encoder:
            encoder = digest_text_encoder(where_from)
        else:
            encoder = find_text_encoder(folder, length, config["text_embed_dim"])
        cache = PromptCache(folder, encoder, dtype)

    def load(device: torch.device) -> T5EncoderModel:
        streams = runtime.offload != "none"
        place = torch.device("cpu") if streams else device
        if isinstance(where_from, Checkpoint):
            loaded = load_text_encoder(where_from, device=place, dtype=dtype)
        else:
            loaded = nn.Module.to(where_from, place)
        if streams:
            prompts.on_release = StreamedModule(loaded, loaded.encoder.block, device).park
        return loaded

    can_load = given is not None or where_from.has_text_encoder
    prompts = PromptEncoder(tokenizer, load if can_load else None, length, device, cache, given)
    return prompts

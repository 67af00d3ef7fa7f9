"""A pipeline folder of any size takes no room: its weights have headers, and no bytes behind them on the disk."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from ddim_lightning.models.checkpoint import WEIGHTS
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER
from ddim_lightning.models.source import BUNDLED

from .published import COGVIDEOX_5B_TRANSFORMER, COGVIDEOX_5B_VAE, T5_XXL

COGVIDEOX_5B: dict[str, Mapping[str, Any]] = {
    "transformer": COGVIDEOX_5B_TRANSFORMER,
    "vae": COGVIDEOX_5B_VAE,
    "text_encoder": T5_XXL,
}


def write_weightless(folder: Path, configs: Mapping[str, Mapping[str, Any]] = COGVIDEOX_5B) -> Path:
    """Write a CogVideoX pipeline in diffusers' layout whose weights, in bfloat16, are holes in their files.

    The files have their full length and read as zeros, but take a few KiB where the file system has sparse files.

    Args:
        folder: Made with its parents.
        configs: Of ``transformer``, ``vae`` and ``text_encoder``.

    Returns:
        The folder.
    """
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "transformer": CogVideoXTransformer3DModel(**configs["transformer"]),
            "vae": AutoencoderKLCogVideoX(**configs["vae"]),
            "text_encoder": T5EncoderModel(T5Config(**configs["text_encoder"])),
        }
    for name, part in parts.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        if isinstance(part, T5EncoderModel):
            part.config.save_pretrained(place)
        else:
            part.save_config(place)
        _write_holes(place / f"{WEIGHTS[name]}.safetensors", part)
    CogVideoXDDIMScheduler(**COGVIDEOX_5B_SCHEDULER).save_pretrained(folder / "scheduler")
    shutil.copytree(BUNDLED / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    shutil.copy(BUNDLED / "model_index.json", folder)
    return folder


def _write_holes(file: Path, part: nn.Module) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    tied = set(getattr(part, "_tied_weights_keys", None) or ())
    for name, weight in part.state_dict().items():
        if name in tied:
            continue
        start, end = end, end + 2 * prod(weight.shape)
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + end)

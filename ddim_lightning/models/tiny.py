"""The tiny CogVideoX: the bundled checkpoint, and a random one of the very same classes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ddim_lightning.models.random_weights import make_random
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER

BUNDLED = Path(__file__).parents[1] / "assets" / "tiny"

# The words of the shapes world; a test compares them with data/shapes.py, which this floor may not import.
WORDS = (
    *("a", "moving", "on", "background"),
    *("circle", "square", "triangle", "cross"),
    *("red", "green", "yellow", "white", "cyan", "magenta", "pink"),
    *("black", "gray", "blue", "purple", "brown", "teal"),
    *("right", "left", "up", "down"),
)

VAE: dict[str, Any] = {
    "block_out_channels": (8, 12, 16),  # three blocks: 4x in space, as the bundled model
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "layers_per_block": 1,  # full-resolution convolutions are what costs time on a CPU
    "norm_num_groups": 4,  # has to divide every number of channels
    "latent_channels": 8,  # as the bundled model
    "temporal_compression_ratio": 4,  # as CogVideoX: 9 frames become 3
    "sample_height": 64,
    "sample_width": 64,
    "scaling_factor": 0.7,  # as CogVideoX-5B; not 1, so that leaving it out shows
}

TRANSFORMER: dict[str, Any] = {
    "num_layers": 3,  # a first, a middle and a last
    "num_attention_heads": 3,  # not the number of frames' or of rows' usual 2
    "attention_head_dim": 16,  # the smallest whose split over time, height and width (4, 6, 6) is even
    "in_channels": 8,
    "out_channels": 8,
    "time_embed_dim": 20,  # not the width, 48
    "text_embed_dim": 24,  # not the width either
    "max_text_seq_length": 16,  # a caption has 10 words and an end
    "patch_size": 2,  # as CogVideoX: 3 x 8 x 8 tokens
    "sample_frames": 9,
    "sample_height": 16,  # in latents: 64 pixels
    "sample_width": 16,
    "temporal_compression_ratio": 4,
}

TEXT_ENCODER: dict[str, Any] = {
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,  # not 4 x 24, so that gate and output cannot be confused
    "num_layers": 2,
    "num_heads": 4,  # 4 x 8 is not 24: heads and width are told apart
    "feed_forward_proj": "gated-gelu",  # as T5-XXL v1.1
    "dropout_rate": 0.0,
}


def make_tokenizer() -> T5Tokenizer:
    """Make a tokenizer with one piece for each of the `WORDS`; any other word becomes ``<unk>``."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *((f"▁{word}", -2.0) for word in WORDS), ("▁", -6.0)], extra_ids=0)


def write_random_tiny(
    folder: Path,
    *,
    seed: int = 0,
    rotary: bool = True,
    snr_shift_scale: float = 1.0,
    scheduler: str = "CogVideoXDDIMScheduler",
    transformer: Mapping[str, Any] | None = None,
    vae: Mapping[str, Any] | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a CogVideoX pipeline folder with random weights, small enough for one CPU thread.

    Args:
        folder: Made with its parents where it is missing; files of the same names are replaced.
        seed: Seed of all weights; the global random state is not touched.
        rotary: Whether the transformer has rotary position embeddings, as 5B, or sines and cosines, as 2B.
        snr_shift_scale: 1 as 5B, 3 as 2B.
        scheduler: The scheduler the folder names, ``CogVideoXDDIMScheduler`` or ``CogVideoXDPMScheduler``.
        transformer: Arguments of `CogVideoXTransformer3DModel` that replace those of `TRANSFORMER`.
        vae: Arguments of `AutoencoderKLCogVideoX` that replace those of `VAE`.
        max_shard_size: Weights above it are split into several files with an index.

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer()
    sizes = {**TRANSFORMER, "use_rotary_positional_embeddings": rotary, **(transformer or {})}
    text = T5Config(vocab_size=len(tokenizer), **TEXT_ENCODER)
    where: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": make_random(lambda: T5EncoderModel(text), seed=seed, **where),
        "transformer": make_random(lambda: CogVideoXTransformer3DModel(**sizes), seed=seed + 1, **where),
        "vae": make_random(lambda: AutoencoderKLCogVideoX(**{**VAE, **(vae or {})}), seed=seed + 2, **where),
        "scheduler": getattr(diffusers, scheduler)(**{**COGVIDEOX_5B_SCHEDULER, "snr_shift_scale": snr_shift_scale}),
    }
    write_pipeline(folder, parts, max_shard_size)
    return folder


def write_pipeline(folder: Path, parts: Mapping[str, Any], max_shard_size: str = "5GB") -> None:
    """Write a CogVideoX pipeline in diffusers' layout.

    Args:
        folder: Made with its parents where it is missing; files of the same names are replaced.
        parts: ``tokenizer``, ``text_encoder``, ``transformer``, ``vae`` and ``scheduler``, by these names.
        max_shard_size: Weights above it are split into several files with an index.
    """
    for name, part in parts.items():
        shards = {"max_shard_size": max_shard_size} if isinstance(part, nn.Module) else {}
        part.save_pretrained(folder / name, **shards)
        config = folder / name / "config.json"
        if config.is_file():  # where a part was loaded from, a path of this machine, is nobody's business
            content = json.loads(config.read_text(encoding="utf-8"))
            content.pop("_name_or_path", None)
            _write_json(config, content)
    index = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    _write_json(folder / "model_index.json", {"_class_name": "CogVideoXPipeline", **index})


def tiny_folder() -> Path:
    """Return the folder of the bundled model, or of a random one where none is bundled.

    The random one is written once, into ``$XDG_CACHE_HOME/ddim_lightning`` (by default under ``~/.cache``).
    """
    if (BUNDLED / "model_index.json").is_file():
        return BUNDLED
    warnings.warn("model: no trained tiny model is bundled, a random one is used: its videos are noise", stacklevel=2)
    sizes = json.dumps([WORDS, COGVIDEOX_5B_SCHEDULER, VAE, TRANSFORMER, TEXT_ENCODER])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddim_lightning"
    folder = cache / f"random-tiny-{hashlib.sha256(sizes.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        _write_once(folder)
    return folder


def _write_once(folder: Path) -> None:
    """Write the folder beside its place and rename it, so that nobody ever sees half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        write_random_tiny(draft).rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster, with the same bytes
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

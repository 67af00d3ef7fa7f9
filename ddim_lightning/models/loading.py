"""A model's name or folder becomes the real diffusers objects, frozen, on their device."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    DDIMInverseScheduler,
    ModelMixin,
)
from diffusers.utils import logging as diffusers_logging
from transformers import PreTrainedTokenizerBase, T5EncoderModel, T5Tokenizer
from transformers.utils import logging as transformers_logging

from ddim_lightning.models.checkpoint import (
    DEFAULTS,
    WEIGHTS,
    Checkpoint,
    check_configs,
    find_variant,
    make_limits,
    read_checkpoint,
    read_weight_shapes,
)
from ddim_lightning.models.schedulers import adopt_scheduler, make_schedulers
from ddim_lightning.types import VideoLimits

_ADAPTER_MARKS = (".lora_", ".base_layer.", "lora.down", "lora.up")
_SCALED = "; weights that are scaled to fewer bits are not supported, use those they were made from"


@dataclass(frozen=True)
class Components:
    """`Components` are the real diffusers objects of one model, frozen and in eval mode.

    Args:
        transformer: Predicts velocities.
        vae: Between videos and latents.
        tokenizer: Of the text encoder, which the `PromptEncoder` owns.
        scheduler: The sampling schedule.
        inverse_scheduler: Its inverse, on the same schedule.
        limits: Which videos the model accepts.
        folder: Where it was read from; ``None`` for weights that were made.
    """

    transformer: CogVideoXTransformer3DModel
    vae: AutoencoderKLCogVideoX
    tokenizer: PreTrainedTokenizerBase
    scheduler: CogVideoXDDIMScheduler
    inverse_scheduler: DDIMInverseScheduler
    limits: VideoLimits
    folder: Path | None = None

    @property
    def kind(self) -> str:
        """What the transformer was made for: ``text-to-video`` or ``image-to-video``, with ``1.5`` in front of it."""
        version = "1.5 " if self.limits.patch_frames > 1 else ""
        return version + ("image-to-video" if self.limits.needs_image else "text-to-video")


def load_components(
    model: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    require_rotary: bool = True,
    on_host: Collection[str] = (),
) -> Components:
    """Load a model from safetensors, straight onto its device.

    Args:
        model: ``tiny``, a folder, or a hub id ``owner/name``.
        device: Where the weights go, without a copy on the host and without offload.
        dtype: Of all weights.
        require_rotary: Whether a transformer without rotary position embeddings is refused; where it is not, a warning
            says what is not known of such models.
        on_host: Those of ``transformer`` and ``vae`` that stay on the host for now.

    Raises:
        FileNotFoundError: No such folder, or a part of it is missing.
        NotADirectoryError: A file where a folder is needed.
        ValueError: A model that is not supported, schedulers that disagree, or weights that do not fit their config.
        OSError: The hub cannot be reached or has no such model.
    """
    checkpoint = read_checkpoint(model, weights=True, require_rotary=require_rotary)
    configs = checkpoint.configs
    if not configs["transformer"]["use_rotary_positional_embeddings"]:
        warnings.warn(
            f"model: {model} has no rotary position embeddings; DDIM inversion of such models was not validated on "
            "released weights, only on small random ones",
            stacklevel=2,
        )
    scheduler, inverse_scheduler = make_schedulers(configs["scheduler"])

    def load(kind: Any, part: str) -> Any:
        where = torch.device("cpu") if part in on_host else device
        return _load_module(kind, checkpoint, part, where, dtype)

    with _hidden_progress_bars():
        return Components(
            transformer=load(CogVideoXTransformer3DModel, "transformer"),
            vae=load(AutoencoderKLCogVideoX, "vae"),
            tokenizer=_load_tokenizer(checkpoint),
            scheduler=scheduler,
            inverse_scheduler=inverse_scheduler,
            limits=make_limits(configs["transformer"], configs["vae"]),
            folder=checkpoint.folder,
        )


def adopt_components(
    transformer: CogVideoXTransformer3DModel,
    vae: AutoencoderKLCogVideoX,
    text_encoder: T5EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    scheduler: Any,
    *,
    require_rotary: bool = True,
) -> Components:
    """Take over the parts of a model that are loaded already; nothing is copied, and the weights are frozen in place.

    Args:
        transformer: Predicts velocities.
        vae: Between videos and latents.
        text_encoder: Of the prompts.
        tokenizer: Of the text encoder.
        scheduler: Its noise levels become the schedule; see `adopt_scheduler`.
        require_rotary: Whether a transformer without rotary position embeddings is refused.

    Raises:
        ValueError: A model that is not supported, or parts that do not fit together.
    """
    parts = {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}
    configs = {
        name: DEFAULTS.get(name, {}) | dict(part.config.to_dict() if name == "text_encoder" else part.config)
        for name, part in parts.items()
    }
    check_configs("the loaded pipeline", configs, require_rotary=require_rotary)
    sampler, inverse = adopt_scheduler(scheduler)
    for part in parts.values():
        part.requires_grad_(False).eval()
    limits = make_limits(configs["transformer"], configs["vae"])
    return Components(transformer, vae, tokenizer, sampler, inverse, limits)


def load_text_encoder(model: str, *, device: torch.device, dtype: torch.dtype) -> T5EncoderModel:
    """Load the text encoder of a model; see `load_components` for ``Args`` and ``Raises``."""
    checkpoint = read_checkpoint(model, weights=True, require_rotary=False)
    with _hidden_progress_bars():
        encoder: T5EncoderModel = _load_module(T5EncoderModel, checkpoint, "text_encoder", device, dtype)
    return encoder


def _load_module(kind: Any, checkpoint: Checkpoint, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    try:
        _check_weights(kind, checkpoint, part)
        module = kind.from_pretrained(
            checkpoint.folder / part,
            dtype=dtype,
            variant=find_variant(checkpoint.folder / part, WEIGHTS[part]),
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, TypeError, ValueError) as error:
        raise _misfit(checkpoint, part, error) from error
    return module.requires_grad_(False).eval()


def _check_weights(kind: Any, checkpoint: Checkpoint, part: str) -> None:
    """Compare names and shapes of the weights with the config.

    Of missing ones transformers would draw some at random, and with unexpected ones, such as scales of weights in 8
    bits, the others may mean something else.
    """
    config = checkpoint.configs[part]
    with torch.device("meta"):
        module = kind.from_config(config) if issubclass(kind, ModelMixin) else kind(kind.config_class.from_dict(config))
    found = read_weight_shapes(checkpoint.folder, part)
    ignored = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()
    for name in sorted(found.keys() - module.state_dict().keys()):
        if any(marker in name for marker in _ADAPTER_MARKS):
            raise ValueError(
                f"{name} is of an adapter: merge it (fuse_lora, unload_lora_weights), and save the weights again"
            )
        if not any(re.search(pattern, name) for pattern in ignored):
            raise ValueError(f"{name} is no weight of the model{_SCALED if 'scale' in name else ''}")
    kept = module.state_dict().keys()  # learned positions are buffers
    buffers = [(name, buffer) for name, buffer in module.named_buffers() if name in kept]
    for name, weight in [*module.named_parameters(), *buffers]:
        if name not in found:
            raise ValueError(f"{name} is missing")
        if found[name] != weight.shape:
            raise ValueError(f"{name} is {found[name]}, the config wants {tuple(weight.shape)}")


def _load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = T5Tokenizer.from_pretrained(
            checkpoint.folder / "tokenizer", local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise _misfit(checkpoint, "tokenizer", error) from error
    return tokenizer


def _misfit(checkpoint: Checkpoint, part: str, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0]
    return ValueError(f"model: the files in {checkpoint.folder / part} do not fit together: {reason}")


@contextmanager
def _hidden_progress_bars() -> Iterator[None]:
    """Hide the libraries' bars, a dozen for one model; the command line draws its own."""
    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()

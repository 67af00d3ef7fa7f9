"""A model's name or folder becomes the real diffusers objects, frozen, on their device."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
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

from ddim_lightning.limits import VideoLimits
from ddim_lightning.models.checkpoint import (
    CONFIGS,
    DEFAULTS,
    WEIGHTS,
    Checkpoint,
    check_configs,
    make_limits,
    read_checkpoint,
)
from ddim_lightning.models.contents import ADAPTER_MARKS
from ddim_lightning.models.schedulers import adopt_scheduler, make_schedulers
from ddim_lightning.models.source import Source
from ddim_lightning.models.weight_files import Header, find_variant, read_headers

_KINDS = {"transformer": CogVideoXTransformer3DModel, "vae": AutoencoderKLCogVideoX, "text_encoder": T5EncoderModel}
_SCALED = "; weights that are scaled to fewer bits are not supported, use those they were made from"


@dataclass(frozen=True)
class Components:
    """`Components` are the real diffusers objects of one model, frozen and in eval mode.

    Args:
        transformer: Predicts velocities.
        vae: Between videos and latents.
        tokenizer: Of the text encoder, which the `PromptEncoder` owns; ``None`` where it was left out.
        scheduler: The sampling schedule.
        inverse_scheduler: Its inverse, on the same schedule.
        limits: Which videos the model accepts.
        checkpoint: What it was read from; ``None`` for weights that were made or were loaded already.
    """

    transformer: CogVideoXTransformer3DModel
    vae: AutoencoderKLCogVideoX
    tokenizer: PreTrainedTokenizerBase | None
    scheduler: CogVideoXDDIMScheduler
    inverse_scheduler: DDIMInverseScheduler
    limits: VideoLimits
    checkpoint: Checkpoint | None = None

    @property
    def kind(self) -> str:
        """What the transformer was made for: ``text-to-video`` or ``image-to-video``, with ``1.5`` in front of it."""
        version = "1.5 " if self.limits.patch_frames > 1 else ""
        return version + ("image-to-video" if self.limits.needs_image else "text-to-video")


def load_components(
    model: str | Checkpoint,
    source: Source = Source(),  # noqa: B008, frozen
    *,
    device: torch.device,
    dtype: torch.dtype,
    require_rotary: bool = True,
    require_text: bool = True,
    on_host: Collection[str] = (),
    token: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Components:
    """Load a model from safetensors, straight onto its device.

    Args:
        model: ``tiny``, a folder, or a hub id ``owner/name``; or the model as it was read, with its weights.
        source: Where its weights come from beside its name.
        device: Where the weights go, without a copy on the host and without offload.
        dtype: Of all weights.
        require_rotary: Whether a transformer without rotary position embeddings is refused; where it is not, a warning
            says what is not known of such models.
        require_text: Whether a model without a text encoder or a tokenizer is refused.
        on_host: Those of ``transformer`` and ``vae`` that stay on the host for now.
        token: Of the hub; ``None`` takes what ``HF_TOKEN`` or a login says.
        tokenizer: The model's, where it is loaded already.

    Raises:
        FileNotFoundError: No such folder, or a part of it is missing.
        NotADirectoryError: A file where a folder is needed.
        ValueError: A model that is not supported, schedulers that disagree, or weights that do not fit their config.
        OSError: The hub cannot be reached or has no such model.
    """
    checkpoint = model
    if isinstance(checkpoint, str):
        needs = {"require_rotary": require_rotary, "require_text": require_text}
        checkpoint = read_checkpoint(checkpoint, source, weights=True, token=token, **needs)
    configs = checkpoint.configs
    if not configs["transformer"]["use_rotary_positional_embeddings"]:
        warnings.warn(
            f"model: {checkpoint.model} has no rotary position embeddings; DDIM inversion of such models was not "
            "validated on released weights, only on small random ones",
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
            tokenizer=load_tokenizer(checkpoint) if tokenizer is None else tokenizer,
            scheduler=scheduler,
            inverse_scheduler=inverse_scheduler,
            limits=make_limits(configs["transformer"], configs["vae"]),
            checkpoint=checkpoint,
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


def load_text_encoder(model: str | Checkpoint, *, device: torch.device, dtype: torch.dtype) -> T5EncoderModel:
    """Load the text encoder of a model, by its name or as it was read; see `load_components` for the rest."""
    checkpoint = read_checkpoint(model, weights=True, require_rotary=False) if isinstance(model, str) else model
    with _hidden_progress_bars():
        encoder: T5EncoderModel = _load_module(T5EncoderModel, checkpoint, "text_encoder", device, dtype)
    return encoder


def check_weights(checkpoint: Checkpoint, part: str) -> None:
    """Raise a ValueError unless names and shapes of a part's weights are those of its config; none are loaded."""
    try:
        _check_weights(_KINDS[part], checkpoint, part)
    except (OSError, TypeError, ValueError) as error:
        raise _misfit(checkpoint, part, error) from error


def make_headers(checkpoint: Checkpoint, part: str) -> dict[str, Header]:
    """Say of a part's weights what their headers would, where they are not here: names and shapes by its config."""
    module = _make_empty(_KINDS[part], checkpoint.configs[part])
    return {name: Header(tuple(weight.shape), "") for name, weight in module.named_parameters()}


def _make_empty(kind: Any, config: dict[str, Any]) -> torch.nn.Module:
    """Make a module without values."""
    with torch.device("meta"):
        module: torch.nn.Module = (
            kind.from_config(config) if issubclass(kind, ModelMixin) else kind(kind.config_class.from_dict(config))
        )
    return module


def _load_module(kind: Any, checkpoint: Checkpoint, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    try:
        _check_weights(kind, checkpoint, part)
        with _as_folder(checkpoint, part) as folder:
            module = kind.from_pretrained(
                folder,
                dtype=dtype,
                variant=find_variant(folder, WEIGHTS[part], checkpoint.get_variant(part)),
                device_map={"": device},
                use_safetensors=True,
                local_files_only=True,
            )
    except (OSError, TypeError, ValueError) as error:
        raise _misfit(checkpoint, part, error) from error
    return module.requires_grad_(False).eval()


@contextmanager
def _as_folder(checkpoint: Checkpoint, part: str) -> Iterator[Path]:
    """Give the folder of a part; a single file gets one for the while, with its config and its name in diffusers."""
    place = checkpoint.get_place(part)
    if place.is_dir():
        yield place
        return
    with TemporaryDirectory() as made:
        Path(made, f"{WEIGHTS[part]}.safetensors").symlink_to(place.resolve())
        Path(made, CONFIGS[part]).write_text(json.dumps(checkpoint.configs[part]), encoding="utf-8")
        yield Path(made)


def _check_weights(kind: Any, checkpoint: Checkpoint, part: str) -> None:
    """Compare names and shapes of the weights with the config.

    Of missing ones transformers would draw some at random, and with unexpected ones, such as scales of weights in 8
    bits, the others may mean something else.
    """
    module = _make_empty(kind, checkpoint.configs[part])
    found = read_headers(checkpoint.list_weights(part))
    ignored = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()
    for name in sorted(found.keys() - module.state_dict().keys()):
        if any(marker in name for marker in ADAPTER_MARKS):
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
        if found[name].shape != weight.shape:
            raise ValueError(f"{name} is {found[name].shape}, the config wants {tuple(weight.shape)}")
        if not found[name].dtype.startswith(("F", "BF")):
            raise ValueError(f"{name} is {found[name].dtype}, no floating point{_SCALED}")


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model; ``None`` where it was left out."""
    if not checkpoint.has_tokenizer:
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = T5Tokenizer.from_pretrained(
            checkpoint.folder / "tokenizer", local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise _misfit(checkpoint, "tokenizer", error) from error
    return tokenizer


def _misfit(checkpoint: Checkpoint, part: str, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0]
    return ValueError(f"model: the files in {checkpoint.get_place(part)} do not fit together: {reason}")


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

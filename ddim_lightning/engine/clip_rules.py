"""What a clip must be for a model to take it stands here, for clips of every origin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.limits import VideoLimits, count_latent_frames
from ddim_lightning.models.loading import Components
from ddim_lightning.models.text import is_text
from ddim_lightning.network.over_model import OverModel
from ddim_lightning.types import Clip, Frames


def check_frames(frames: Frames, limits: VideoLimits) -> None:
    """Raise a ValueError unless frames are uint8 (f, c, h, w) of a count and a size that the model can take."""
    if frames.dim() != 4 or frames.shape[1] != 3:
        raise ValueError(f"frames: must have shape (f, 3, h, w), got {tuple(frames.shape)}")
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames: must be uint8, 0 .. 255, got {str(frames.dtype).removeprefix('torch.')}")
    num_frames, _, height, width = frames.shape
    if num_frames % limits.temporal != 1 or num_frames <= limits.temporal:
        rule = f"{limits.temporal}k + 1 and at least {limits.temporal + 1}"
        raise ValueError(f"frames: their count must be {rule}, got {num_frames}")
    if height % limits.multiple or width % limits.multiple:
        raise ValueError(f"frames: height and width must be multiples of {limits.multiple}, got {height} x {width}")
    limits.check_count(num_frames)
    limits.check_size(height, width)


def check_mask(mask: Tensor, frames: Frames) -> None:
    """Raise a ValueError unless a mask has the size of its clip and lets something change."""
    wanted = tuple(frames[:, 0].shape)
    if mask.shape != wanted:
        raise ValueError(f"mask: must have the frames, height and width of the clip, {wanted}, got {tuple(mask.shape)}")
    if not mask.any():
        raise ValueError("mask: must be true somewhere, got false everywhere")


def check_latents(latents: Tensor, parts: Components, frames: Frames | None = None) -> None:
    """Raise a ValueError unless latents (1, f, c, h, w) are what the VAE makes of a clip.

    Args:
        latents: Clean latents.
        parts: The loaded model.
        frames: The frames of the clip, where they are known.
    """
    channels = parts.vae.config.latent_channels
    shape = tuple(latents.shape)
    if latents.dim() != 5 or shape[0] != 1 or shape[2] != channels:
        turned = latents.dim() == 5 and shape[1] == channels
        hint = ", whose axis 1 has the channels: use .transpose(1, 2)" if turned else ""
        raise ValueError(f"latents: must have shape (1, f, {channels}, h, w), got {shape}{hint}")
    if not latents.is_floating_point():
        raise ValueError(f"latents: must be floats, got {str(latents.dtype).removeprefix('torch.')}")
    if not latents.isfinite().all():
        raise ValueError("latents: must be finite, got infinity or NaN")
    if frames is not None:
        scale = 2 ** (len(parts.vae.config.block_out_channels) - 1)
        count, _, height, width = frames.shape
        wanted = (1, count_latent_frames(count, parts.limits), channels, height // scale, width // scale)
        if shape != wanted:
            raise ValueError(f"latents: must be those of the clip's frames, {wanted}, got {shape}")


def check_prompts(clip: Clip) -> None:
    """Raise a ValueError unless all prompts of a clip are texts, with a source prompt each where it has several."""
    if isinstance(clip.prompts, str):
        raise ValueError(f"prompts: must be a tuple of texts, got the text {clip.prompts!r}")
    named = [("source_prompt", clip.source_prompt or ""), ("negative_prompt", clip.negative_prompt)]
    named += [("source_prompts", prompt) for prompt in clip.source_prompts]
    for name, prompt in [*(("prompts", prompt) for prompt in clip.prompts), *named]:
        if not is_text(prompt):
            raise ValueError(f"{name}: must be text of whole characters, got {prompt!r}")
    if clip.source_prompts and len(clip.source_prompts) != len(clip.prompts):
        rule = f"must be empty or one for each of {len(clip.prompts)} prompts"
        raise ValueError(f"source_prompts: {rule}, got {len(clip.source_prompts)}")


def get_source_prompts(clip: Clip) -> Sequence[str | None]:
    """Return what describes the source of each edit of a clip, of which all may share one description."""
    return [text or None for text in clip.source_prompts] or [clip.source_prompt] * len(clip.prompts)


def find_untrained(frames: Frames, limits: VideoLimits) -> list[str]:
    """Return a sentence for each way in which frames (f, c, h, w) differ from what the model was trained on."""
    found = []
    num_frames, _, height, width = frames.shape
    if (height, width) != (limits.height, limits.width):
        rule = f"the model was trained at {limits.height} x {limits.width} pixels"
        found.append(f"height, width: {rule}, got {height} x {width}: results may be worse")
    # The windows of a longer clip have the length that it was trained on.
    if num_frames < limits.num_frames and (num_frames - 1) % limits.trained_multiple:
        rule = f"the model was trained on {limits.trained_multiple}k + 1 frames"
        found.append(f"num_frames: {rule}, got {num_frames}: results may be worse")
    return found


def find_unread(engine: InversionEngine) -> list[str]:
    """Return a sentence where the model was not trained for what the editor holds, or ``context`` holds nothing."""
    network, editor = engine.edit_denoiser.network, engine.editor
    if not isinstance(network, OverModel):
        return []
    if editor.context_nfe and network.mark is None and engine.adapter is None:
        rule = "reads a source, which this model was not trained to do; load an adapter that was, or take another"
        return [f"editor: {type(editor).__name__} {rule}"]
    if not editor.context_nfe and network.context != "device":
        return [f"context: has no effect with {type(editor).__name__}, which holds no keys and values"]
    return []


def check_first_frame(clip: Clip, limits: VideoLimits) -> None:
    """Raise a ValueError unless the first frame of a clip's edits, if it has one, is one that the model can take."""
    frame = clip.first_frame
    if frame is None:
        return
    limits.check_first_frame(clip.first_frame_source or tuple(frame.shape))
    if frame.shape != clip.frames.shape[1:] or frame.dtype != torch.uint8:
        got = f"{str(frame.dtype).removeprefix('torch.')} {tuple(frame.shape)}"
        raise ValueError(f"first_frame: must be uint8 {tuple(clip.frames.shape[1:])} as the frames are, got {got}")

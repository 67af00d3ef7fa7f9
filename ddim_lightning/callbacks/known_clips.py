"""The first clips of a validation batch are edited, and compared with edits that are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.models.vae import quantize
from ddim_lightning.types import Clip, Frames, Latents


@dataclass(frozen=True, eq=False)
class KnownClip:
    """A `KnownClip` is a clip, and what its edits should be where that is known.

    Args:
        clip: The clip, with a prompt for each edit.
        truths: (f, c, h, w) uint8, one per prompt; empty where they are not known.
    """

    clip: Clip
    truths: tuple[Frames, ...] = ()


@torch.no_grad()
def take_clips(batch: Any, count: int, engine: InversionEngine) -> list[KnownClip]:
    """Take the first clips or pairs out of a batch.

    Args:
        batch: As `DDIMInversionModule` trains on: captioned clips, or pairs.
        count: Clips, or edits of pairs, >= 1; of fewer in the batch all. Edits of one source are those of one clip.
        engine: Decodes latents.

    Returns:
        Clips with their caption and no prompts; or sources with the prompts and the truths of their edits.

    Raises:
        ValueError: A batch that is neither.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(f"batch: must be a mapping of clips or pairs, got a {type(batch).__name__}")
    if not any(name in batch for name in ("target", "target_frames")):
        captions = _get(batch, "prompts")[:count]
        return [KnownClip(_make_clip(batch, "", k, engine, f"clip-{k}", caption)) for k, caption in enumerate(captions)]
    prompts = _get(batch, "target_prompts")[:count]
    sources = [int(source) for source in batch.get("reads", range(len(prompts)))][:count]
    captions, clips = batch.get("source_prompts") or {}, []
    for source in dict.fromkeys(sources):
        edits = [k for k, read in enumerate(sources) if read == source]
        wanted = tuple(prompts[k] for k in edits)
        caption = captions[source] if captions else None
        clip = _make_clip(batch, "source", source, engine, f"pair-{source}", caption, wanted)
        clips.append(KnownClip(clip, tuple(_load(batch, "target", k, engine)[0] for k in edits)))
    return clips


def _make_clip(
    batch: Mapping[str, Any],
    kind: str,
    position: int,
    engine: InversionEngine,
    name: str,
    caption: str | None,
    prompts: tuple[str, ...] = (),
) -> Clip:
    frames, latents = _load(batch, kind, position, engine)
    return Clip(name, frames, prompts=prompts, source_prompt=caption, latents=latents)


def _load(batch: Mapping[str, Any], kind: str, position: int, engine: InversionEngine) -> tuple[Frames, Latents | None]:
    """Load frames and, where they are what the batch holds, latents; ``kind`` is that of a pair, or empty."""
    in_latents, in_frames = kind or "latents", f"{kind}_frames" if kind else "frames"
    if in_latents not in batch:
        return _get(batch, in_frames)[position].cpu(), None
    latents: Tensor = batch[in_latents][position : position + 1].float()
    # All latent frames are the clip's own, as in training.
    num_frames = (latents.shape[1] - 1) * engine.components.limits.temporal + 1
    return quantize(engine.decode(latents.to(engine.device), num_frames)[0]).cpu(), latents


def _get(batch: Mapping[str, Any], name: str) -> Any:
    if name not in batch:
        raise ValueError(f"batch: must hold {name}, got {', '.join(map(str, batch))}")
    return batch[name]

"""A fingerprint says what the result of a clip depends on, so that a run finds what an earlier one has finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.trajectory import digest_tensor, digest_weights, make_fingerprint
from ddim_lightning.metrics.measures import Networks
from ddim_lightning.models.prompt_cache import digest_text_encoder
from ddim_lightning.types import Clip

_PIECES, _PIECE = 64, 1 << 14  # a megabyte of a file; its pictures are looked at as a whole
_NOT_IN_RESULTS = frozenset({"compile_cache", "offload", "prompt_cache", "require_rotary", "window_overlap"})
"""Options of the runtime that change no byte of a result, and one that is said by ``windows`` where it does."""


def make_clip_fingerprint(
    engine: InversionEngine, clip: Clip, seed: int, settings: Mapping[str, Any]
) -> dict[str, str]:
    """Describe all that the result of a clip depends on: its content, what is wanted of it, the model, the settings.

    No name is in it: neither the clip's id nor the paths of its file and of the model.

    Args:
        engine: The loaded model.
        clip: The clip as the model sees it.
        seed: Where its random numbers come from.
        settings: What `DDIMInversionModule.describe` returns.

    Returns:
        What `make_fingerprint` returns for its inversion, and digests: ``text_encoder``, ``request``, ``settings``,
        and ``adapter`` where one acts in edits.
    """
    prompt = clip.source_prompt if engine.inversion_prompt is None else engine.inversion_prompt
    request = {
        "fps": str(clip.fps),
        "selection": None if clip.selection is None else vars(clip.selection),
        "prompts": clip.prompts,
        "source_prompt": clip.source_prompt,
        "negative_prompt": clip.negative_prompt,
        "mask": None if clip.mask is None else digest_tensor(clip.mask),
        "first_frame": None if clip.first_frame is None else digest_tensor(clip.first_frame),
        "seed": seed,
        "source": _digest_source(clip.source),  # its sound is copied
        **({"source_prompts": clip.source_prompts} if clip.source_prompts else {}),
    }
    outputs, runtime = settings["outputs"], settings["runtime"]
    relevant = {
        "editor": settings["editor"],
        "guidance_scale": settings["guidance_scale"],
        "device": settings["device"],
        "outputs": {name: outputs[name] for name in ("reconstruct", "save_trajectory")},
        "runtime": {name: value for name, value in runtime.items() if name not in _NOT_IN_RESULTS},
    }
    if outputs["metrics"]:  # what was not measured must be
        files = {field.name: Path(outputs[field.name]).name for field in fields(Networks) if outputs[field.name]}
        relevant["metrics"] = {"names": outputs["metrics"], **files}
    adapter = {} if engine.adapter is None else {"adapter": f"{engine.adapter.digest} {engine.adapter.scale}"}
    return {
        **make_fingerprint(engine, clip, prompt or ""),
        **adapter,
        "text_encoder": _digest_text_encoder(engine),
        "request": _digest(request),
        "settings": _digest(relevant),
    }


def _digest_source(source: str | None) -> str | None:
    """Digest the size and evenly spread pieces of a file; ``None`` for a folder of frames, which has no sound."""
    try:
        if source is None or Path(source).is_dir():
            return None
        size, digest = Path(source).stat().st_size, hashlib.sha256()
        with Path(source).open("rb") as file:
            for k in range(_PIECES):
                file.seek(max(0, size - _PIECE) * k // (_PIECES - 1))
                digest.update(file.read(_PIECE))
        return f"{size} {digest.hexdigest()[:16]}"
    except OSError:  # it is gone since it was read
        return None


def _digest_text_encoder(engine: InversionEngine) -> str:
    encoder, checkpoint = engine.prompts.text_encoder or engine.prompts.given, engine.components.checkpoint
    trains = encoder is not None and any(weight.requires_grad for weight in encoder.parameters())
    if encoder is not None and (trains or checkpoint is None):
        return digest_weights(encoder, engine.device)
    if checkpoint is None:
        return ""
    cache = engine.prompts.cache  # which knows the digest, also of a text encoder that is not there
    return (digest_text_encoder(checkpoint) if cache is None else cache.encoder)[:16]


def _digest(values: Mapping[str, Any]) -> str:
    # ASCII, because a text from a file's name may hold what UTF-8 cannot say.
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]

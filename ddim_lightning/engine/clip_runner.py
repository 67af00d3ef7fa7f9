"""The clips of a batch are done one after the other, and one that fails is skipped."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ddim_lightning.engine.batch_forms import Item
from ddim_lightning.engine.clip_job import ClipJob, make_clip_seed
from ddim_lightning.engine.clips import find_id, make_clip
from ddim_lightning.engine.config import Outputs
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.fingerprint import make_clip_fingerprint
from ddim_lightning.engine.shortage import tell_shortage
from ddim_lightning.metrics.measurer import Measurer
from ddim_lightning.runtime.clip_group import GroupError
from ddim_lightning.types import Clip, ClipResult, FindResult, Progress, UnreadableClip

_log = logging.getLogger(__name__)
_GROUPS = ("schedule", "runtime", "outputs")


@dataclass(frozen=True)
class ClipRunner:
    """A `ClipRunner` makes a result of every clip that comes, in whatever form.

    Args:
        engine: The loaded model.
        settings: What `DDIMInversionModule.describe` returns; goes on record, and its names are no clip's.
        seed: The run's seed.
        guidance_scale: Guidance scale of the edits.
        outputs: What is made of the clips beside their edits, and what happens when one fails.
        batch_prompts: See `ClipJob`.
        on_progress: See `ClipJob`.
        measurer: See `ClipJob`.
        find_results: Each says whether it has the result of a clip already.
    """

    engine: InversionEngine
    settings: dict[str, Any]
    seed: int
    guidance_scale: float
    outputs: Outputs
    batch_prompts: bool = False
    on_progress: Callable[[Progress], None] = lambda progress: None
    measurer: Measurer | None = None
    find_results: Sequence[FindResult] = ()

    def run(self, item: Item) -> ClipResult:
        """Do the whole job on one clip.

        Args:
            item: The clip as it came.

        Returns:
            Its result; of one that failed, or is none, a ``skipped`` one with the reason.

        Raises:
            Exception: With ``on_error="raise"``, whatever it fails with; out of memory is told by `tell_shortage`.
            GroupError: The processes of a clip do not work together any more.
        """
        clip, seed, group = self._make_clip(item), 0, self.engine.group
        try:
            with group.together():
                if isinstance(clip, UnreadableClip):
                    raise ValueError(clip.reason)
                seed = make_clip_seed(self.seed, clip.id) if clip.seed is None else clip.seed
                job = self._make_job(clip, seed)
                fingerprint = make_clip_fingerprint(self.engine, job.clip, seed=seed, settings=self.settings)
                group.check_same("clip", (clip.id, fingerprint))
                is_found = group.ask_first(partial(self._find, job.clip, fingerprint))
                with self._tell_shortage(job):
                    result = ClipResult(job.clip, "finished", seed=seed) if is_found else job.run()
                result.fingerprint, result.settings = fingerprint, self.settings
        except Exception as error:
            if self.outputs.on_error == "raise" or isinstance(error, GroupError):
                raise
            _log.debug("clip %s was skipped", clip.id, exc_info=True)  # with the traceback
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return self._skip(clip, clip.reason if isinstance(clip, UnreadableClip) else reason, seed)
        for sentence in result.warnings if group.is_first else ():
            warnings.warn(f"clip {clip.id}: {sentence}", stacklevel=3)
        return result

    def _find(self, clip: Clip, fingerprint: Mapping[str, str]) -> bool:
        # A list, because each of them may say that it could not take the result.
        found = [find(clip, fingerprint) for find in self.find_results]
        return bool(found) and all(found)

    @contextmanager
    def _tell_shortage(self, job: ClipJob) -> Iterator[None]:
        """Say what a job would have needed that runs out of memory; see `tell_shortage`."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            runtime = self.settings["runtime"]
            told = tell_shortage(self.engine, job.clip, job.stage, runtime, self.guidance_scale)
            raise torch.OutOfMemoryError(told) from error

    def _make_clip(self, item: Item) -> Clip | UnreadableClip:
        try:
            clip = make_clip(item, self.engine, _list_names(self.settings))
        except Exception as error:
            if self.outputs.on_error == "raise":
                raise
            return UnreadableClip(find_id(item), "", " ".join(str(error).split()))
        if isinstance(clip, UnreadableClip) and self.outputs.on_error == "raise":
            raise ValueError(clip.reason)
        return clip

    def _make_job(self, clip: Clip, seed: int) -> ClipJob:
        return ClipJob(
            self.engine,
            clip,
            seed=seed,
            guidance_scale=self.guidance_scale,
            outputs=self.outputs,
            batch_prompts=self.batch_prompts,
            on_progress=self.on_progress,
            measurer=self.measurer,
        )

    def _skip(self, clip: Clip | UnreadableClip, reason: str, seed: int = 0) -> ClipResult:
        if self.engine.group.is_first:
            warnings.warn(f"clip {clip.id}: skipped: {reason}", stacklevel=4)
        return ClipResult(clip, "skipped", reason, seed=seed, settings=self.settings)


def _list_names(settings: Mapping[str, Any]) -> set[str]:
    return {*settings, *(name for group in _GROUPS for name in settings[group])}

"""A data module yields pairs of a clip and its edit, for training editors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from ddim_lightning.data.batches import Batches, PairBatches
from ddim_lightning.data.examples import Split, find_pairs
from ddim_lightning.data.frames import Fit, Stride, check_stride
from ddim_lightning.data.splits import divide
from ddim_lightning.engine.training_clips import TrainingClips


class PairDataModule(LightningDataModule):
    """A `PairDataModule` yields batches of source clips, each with one or several edits of it.

    A batch is ``{"source": (s, f, c, h, w), "target": (t, f, c, h, w), "reads": (t,) int64, the source of each target,
    "source_prompts": [s], "target_prompts": [t]}``: latents, drawn from what the VAE made of the clips. Without
    ``batches.cache`` they are frames, uint8, under ``source_frames`` and ``target_frames``. A validation batch has all
    targets of its sources, and nothing in it is drawn.

    Args:
        pairs: A table, CSV, JSONL or a JSON list, with the columns ``source_video`` and ``target_video``;
            ``target_prompt``, what the target shows, or ``instruction``, what was asked for; ``source_prompt`` and
            ``split`` (``train``, ``val``, ``test``) where it has them.
        columns: What the table calls them, by our names: a column, or a text with columns in braces. An instruction is
            handed out among the target prompts.
        root: Where the paths in the table begin; ``None`` is its folder.
        val_pairs: A table of pairs that validate, with the same columns; ``None`` takes those that ``split`` names, or
            the share ``batches.val_share``.
        targets: Targets of a source in a training batch at most, >= 1.
        stride: Distance between frames, >= 1, or ``spread``: evenly over the whole clip.
        fit: What happens to frames of another shape: ``crop``, ``pad`` or ``stretch``.
        num_workers: Processes that load, >= 0.
        batches: How pairs become batches; see `Batches`.

    Raises:
        OSError: If a table or a file in it does not exist; always the exact subclass.
        ValueError: If an argument or a row breaks its rule.
    """

    def __init__(
        self,
        pairs: str | os.PathLike[str],
        *,
        columns: Mapping[str, str] | None = None,
        root: str | os.PathLike[str] | None = None,
        val_pairs: str | os.PathLike[str] | None = None,
        targets: int = 1,
        stride: Stride = 1,
        fit: Fit = "crop",
        num_workers: int = 2,
        batches: Batches = Batches(),  # noqa: B008, frozen
    ) -> None:
        super().__init__()
        check_stride(stride)
        if fit not in get_args(Fit):
            raise ValueError(f"fit must be one of {', '.join(get_args(Fit))}, got {fit!r}")
        for name, value, least in (("targets", targets, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        self.targets, self.num_workers = targets, num_workers
        val = None if val_pairs is None else find_pairs(val_pairs, columns, root)
        splits = divide(find_pairs(pairs, columns, root), val, batches.val_share, batches.seed)
        self.clips = TrainingClips(splits, batches, stride=stride, fit=fit, tell=rank_zero_info)

    def all_prompts(self) -> list[str]:
        """List every text that a pair trains or validates under, each once, so that a prompt cache has them all."""
        return self.clips.list_prompts()

    def setup(self, stage: str) -> None:
        """Look at every clip before weights are loaded; Lightning calls it."""
        limits = getattr(self.trainer.lightning_module, "video_limits", None) if self.trainer else None
        self.clips.read(self.clips.batches.buckets, limits)

    def train_dataloader(self) -> Any:
        """Make the loader of this process's share of an epoch; it goes on where a resumed training was."""
        return self._make_loader("train")

    def val_dataloader(self) -> Any:
        """Make the loader of this process's share of what validates: the same every time."""
        return self._make_loader("val")

    def _make_loader(self, split: Split) -> Any:
        return self.clips.make_loader(split, partial(PairBatches, targets=self.targets), self.trainer, self.num_workers)

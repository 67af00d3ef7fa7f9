"""Endless training streams draw samples that depend on their position alone, so that they can be resumed."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def make_generator(seed: int, split: str, index: int) -> torch.Generator:
    """Make the generator of one sample: the same for the same three arguments, whatever was drawn before.

    Args:
        seed: The data module's seed.
        split: ``train``, ``val`` or ``predict``; their samples are unrelated.
        index: Position in the split, >= 0.
    """
    digest = hashlib.blake2s(f"{seed}/{split}/{index}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def get_progress(trainer: Any) -> tuple[int, int, int]:
    """Get this process's rank, how many ranks there are, and how many batches of the training each has done.

    Args:
        trainer: A Lightning Trainer, or ``None`` outside of one, where one process starts from the beginning.
    """
    if trainer is None:
        return 0, 1, 0
    return trainer.global_rank, trainer.world_size, trainer.global_step * trainer.accumulate_grad_batches


def get_batches_done(trainer: Any) -> int:
    """Get how many batches of its current epoch this process has trained on.

    Args:
        trainer: A Lightning Trainer, or ``None`` outside of one.
    """
    return 0 if trainer is None else int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)

"""A group of processes is left before Python ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def leave_group() -> Iterator[None]:
    """Leave the group of processes that a run has joined; Lightning leaves groups of NCCL only.

    The threads of a gloo group that is still there when Python ends may abort the process, and torchrun all others.
    """
    distributed = torch.distributed
    joined = distributed.is_available() and distributed.is_initialized()
    try:
        yield
    finally:
        if distributed.is_available() and distributed.is_initialized() and not joined:
            distributed.destroy_process_group()

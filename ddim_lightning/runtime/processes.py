"""Processes of a run share work, and leave their group before Python ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")
LONG = timedelta(days=365)
"""How long a process waits for another one that has much to do."""


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


def is_first() -> bool:
    """Say whether this process is the first of its run, which speaks for all."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def share_work(count: int, work: Callable[[int], _Result]) -> list[_Result]:
    """Do each of many pieces of work in one process of the run, and give all results to all processes.

    Process r of n takes the pieces r, r + n, ... Who is done waits for the others, however long that takes. Where no
    group of processes was joined, this one does everything.

    Args:
        count: How many pieces.
        work: Does the piece of a position, 0 .. count - 1; its result can be pickled.

    Returns:
        The results by position, the same in every process.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return [work(position) for position in range(count)]
    rank, world = distributed.get_rank(), distributed.get_world_size()
    mine: dict[int, _Result] | Exception
    try:
        mine = {position: work(position) for position in range(rank, count, world)}
    except Exception as error:  # the others wait for an answer, and fail with it
        mine = error
    shares: list[Any] = [None] * world
    # A group of its own: that of a GPU run ends after minutes in which one process had nothing to say.
    group: Any = distributed.new_group(backend="gloo", timeout=LONG)
    distributed.all_gather_object(shares, mine, group=group)
    distributed.destroy_process_group(group)
    if failed := [share for share in shares if isinstance(share, Exception)]:
        raise mine if isinstance(mine, Exception) else failed[0]
    results = {position: result for share in shares for position, result in share.items()}
    return [results[position] for position in range(count)]

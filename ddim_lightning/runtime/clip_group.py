"""Processes that work on one clip together go on with the same numbers, and fail together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddim_lightning.runtime.processes import LONG

_T = TypeVar("_T")


class GroupError(RuntimeError):
    """A `GroupError` says that the processes of a group do not work together any more, so that a run cannot go on."""


class ClipGroup:
    """A `ClipGroup` is the processes that work on one clip together; of size 1 it is this process alone.

    Every process does the same work in the same order, and meets the others at the same places of it. What they tell
    each other at a meeting goes through the hosts: it waits for no device.

    Args:
        size: How many processes, neighbors in the order of their ranks; every process of the run must make its group.

    Raises:
        ValueError: See `check_size`.
    """

    def __init__(self, size: int = 1) -> None:
        self.size, self.rank = size, 0
        self.at_work = False
        """Whether the group works on a clip; outside of that nothing is split, and nobody waits."""
        self._failed = False
        self._words: Any = None
        self._tensors: Any = None
        if size > 1:
            check_size(size)
            distributed = torch.distributed
            self.rank = distributed.get_rank() % size
            # A process may wait as long as another one reads, decodes or writes.
            self._words, _ = distributed.new_subgroups(size, timeout=LONG, backend="gloo")
            self._tensors, _ = distributed.new_subgroups(size)

    @property
    def is_first(self) -> bool:
        """Whether this process is the first of its group, which speaks for all."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work on a clip: what fails in one process of the group fails in all of them.

        Raises:
            RuntimeError: What another process has failed with.
            GroupError: Another process is gone, or does other work.
        """
        if self.size == 1:
            yield
            return
        self.at_work, self._failed = True, False
        try:
            yield
            self._meet()
        except GroupError:
            raise
        except Exception as error:
            if not self._failed:  # the others wait for an answer, and fail with it
                self._meet(failure=f"{type(error).__name__}: {' '.join(str(error).split())}")
            raise
        finally:
            self.at_work = False

    def check_same(self, what: str, value: object) -> None:
        """See that all processes have the same.

        Args:
            what: What the value is, for the message.
            value: Anything that can be pickled and compared.

        Raises:
            GroupError: One has another value.
        """
        if not self.at_work:
            return
        values = self._meet(value)
        if any(other != values[0] for other in values):
            rule = f"all processes of a group must have the same {what}"
            raise GroupError(f"ranks_per_clip: {rule}, got {values}")

    def ask_first(self, work: Callable[[], _T]) -> _T:
        """Let the first process find out something for all of them.

        Args:
            work: What it does; its result can be pickled.
        """
        if not self.at_work:
            return work()
        answer: _T = self._meet(work() if self.is_first else None)[0]
        return answer

    def gather(self, tensor: Tensor) -> Tensor:
        """Gather tensors of one shape and dtype from all processes, byte for byte.

        Args:
            tensor: That of this process.

        Returns:
            (size, ...), in the order of the processes.
        """
        gathered = tensor.new_empty((self.size, *tensor.shape))
        # As bytes: not every backend knows every dtype.
        pieces = [piece.view(torch.uint8) for piece in gathered.unbind(0)]
        with _others():
            torch.distributed.all_gather(pieces, tensor.contiguous().view(torch.uint8), group=self._tensors)
        return gathered

    def exchange(self, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Send a tensor to each process, and receive one from each, byte for byte.

        Args:
            tensors: For each process what it gets, of one dtype.
            shapes: For each process the shape of what it sends to this one.

        Returns:
            What came, in the order of the processes.
        """
        sent = torch.cat([tensor.flatten() for tensor in tensors])
        sizes = [math.prod(shape) for shape in shapes]
        received, width = sent.new_empty(sum(sizes)), sent.element_size()
        with _others():
            torch.distributed.all_to_all_single(
                received.view(torch.uint8),
                sent.view(torch.uint8),
                [size * width for size in sizes],
                [tensor.numel() * width for tensor in tensors],
                group=self._tensors,
            )
        return [piece.view(shape) for piece, shape in zip(received.split(sizes), shapes, strict=True)]

    def take_first(self, tensor: Tensor) -> Tensor:
        """Return the first process' tensor, for kernels may round otherwise elsewhere."""
        if not self.at_work:
            return tensor
        self.check_same("shape of latents", tuple(tensor.shape))
        return self.gather(tensor)[0]

    def _meet(self, word: object = None, failure: str | None = None) -> list[Any]:
        """Wait for all others, and return what each says; raises what another one has failed with."""
        told: list[Any] = [None] * self.size
        with _others():
            torch.distributed.all_gather_object(told, (word, failure), group=self._words)
        failures = {rank: reason for rank, (_, reason) in enumerate(told) if reason is not None}
        self._failed = bool(failures)
        if failures and failure is None:
            rank, reason = next(iter(failures.items()))
            raise RuntimeError(f"process {rank} of the clip failed with {reason}")
        return [said for said, _ in told]


@contextmanager
def _others() -> Iterator[None]:
    """Say of what a backend raises what it means."""
    try:
        yield
    except RuntimeError as error:
        raise GroupError(f"ranks_per_clip: another process of the clip is gone: {error}") from error


def check_size(size: int) -> None:
    """Raise a ValueError unless the processes of the run can be divided into groups of a size."""
    distributed = torch.distributed
    joined = distributed.is_available() and distributed.is_initialized()
    world = distributed.get_world_size() if joined else 1
    if world % size:
        rule = "must divide the number of processes, which the Trainer's devices and num_nodes say"
        raise ValueError(f"ranks_per_clip: {rule}, {world}, got {size}")

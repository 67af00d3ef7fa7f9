"""A sampler gives batches from buckets, shared between processes, and goes on where an earlier run ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from ddim_lightning.data.batches import BatchKey, TrainingBatches
from ddim_lightning.data.streams import make_generator


class BucketSampler(DistributedSampler[Any]):
    """A `BucketSampler` gives each process its share of the batches of an epoch; a batch is of one bucket.

    The batches of an epoch are the same under any number of processes; process r of n takes r, r + n, ... Lightning
    leaves a `DistributedSampler` alone and tells it the epoch.

    Args:
        data: What is sampled.
        batch_size: Items in a batch; the last one of a bucket may have fewer.
        rank: This process, 0 .. world - 1.
        world: How many processes share the batches. Those left over train in another epoch.
        get_done: Says how many batches of this epoch are done, when its first is wanted; ``None`` validates: always
            all batches in order, with nothing drawn. Where the processes cannot share them evenly, some come twice.

    Raises:
        ValueError: Fewer batches than processes.
    """

    def __init__(
        self,
        data: TrainingBatches,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        get_done: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(data, num_replicas=world, rank=rank, shuffle=False)
        self.data, self.batch_size, self.get_done = data, batch_size, get_done
        total = sum(-(-len(bucket) // batch_size) for bucket in data.buckets.values())
        self.length = -(-total // world) if get_done is None else total // world
        if not self.length:
            rule = f"must leave a batch for each of {world} processes"
            raise ValueError(f"batch_size: {rule}, got {batch_size} and {len(data)} clips or sources")

    def __len__(self) -> int:
        """Count the batches of this process in an epoch."""
        return self.length

    def __iter__(self) -> Iterator[Any]:
        """Give what is left of the epoch."""
        done = 0 if self.get_done is None else self.get_done()
        batches = self.plan(self.epoch)
        for position in range(done, self.length):
            number = position * self.num_replicas + self.rank
            draw = None if self.get_done is None else f"train/{self.epoch}/{number}"
            yield BatchKey(draw, batches[number % len(batches)])

    def plan(self, epoch: int) -> list[tuple[int, ...]]:
        """Make the batches of all processes in an epoch, which depend on the seed and the epoch alone."""
        generator = None if self.get_done is None else make_generator(self.data.seed, "order", epoch)
        batches = []
        for bucket in self.data.buckets.values():
            order = _shuffle(bucket, generator)
            batches += [tuple(order[at : at + self.batch_size]) for at in range(0, len(order), self.batch_size)]
        return _shuffle(batches, generator)


class EpochLoader(DataLoader[dict[str, Any]]):
    """An `EpochLoader` asks where it is in the epoch only when the first batch is wanted, and can so be resumed.

    Lightning makes iterators before it has restored how far a training was. What it would keep of a loader is nothing,
    because the Trainer knows it.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Start processes when the first batch is wanted."""
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing; see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing; see the class."""


def _shuffle(things: list[Any], generator: torch.Generator | None) -> list[Any]:
    if generator is None:
        return things
    return [things[position] for position in torch.randperm(len(things), generator=generator).tolist()]

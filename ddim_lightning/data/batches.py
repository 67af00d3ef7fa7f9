"""Clips become batches: of captioned clips, or of sources with their targets."""

from __future__ import annotations

import itertools
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddim_lightning.data.buckets import Size
from ddim_lightning.data.clip_frames import ClipFrames
from ddim_lightning.data.examples import Example
from ddim_lightning.data.latent_cache import EncodedClip
from ddim_lightning.data.streams import make_generator

OnError = Literal["skip", "raise"]


@dataclass(frozen=True)
class Batches:
    """A `Batches` says how clips become batches under `Trainer.fit`.

    Args:
        batch_size: Clips in a batch, or sources with their targets; all of one bucket.
        val_share: Share of the clips that validate, 0 .. 1, drawn by ``seed`` from their paths; no clip does both.
        buckets: Sizes to train on, (num_frames, height, width) each; every clip goes to the one that keeps most of it.
            Empty is the model's own size.
        cache: A folder where clips are kept as latents, so that each is encoded once for all trainings. Without one
            batches hold frames, which are encoded in every step.
        vae: A folder with the VAE in diffusers' layout; ``None`` is that of the module that trains.
        on_error: What becomes of clips that cannot be read: ``skip`` leaves them out, with a warning each; ``raise``
            ends the run.
        seed: Of the order of the clips, what is drawn from their posteriors, and the share that validates.

    Raises:
        ValueError: An option out of its range.
    """

    batch_size: int = 1
    val_share: float = 0.0
    buckets: tuple[tuple[int, int, int], ...] = ()
    cache: str | None = None
    vae: str | None = None
    on_error: OnError = "skip"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options out of their ranges."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1, got {self.batch_size}")
        if not 0.0 <= self.val_share < 1.0:
            raise ValueError(f"val_share: must lie in 0 .. 1, without 1, got {self.val_share}")
        if self.on_error not in get_args(OnError):
            raise ValueError(f"on_error: must be {' or '.join(get_args(OnError))}, got {self.on_error!r}")
        if self.vae is not None and self.cache is None:
            raise ValueError(f"vae: must be unset without cache, where nothing is encoded ahead, got {self.vae!r}")


@dataclass(frozen=True)
class ReadyExample:
    """A `ReadyExample` is an example whose clips can be loaded.

    Args:
        example: The row.
        size: Of its bucket.
        clips: By its videos: the source of a pair first.
    """

    example: Example
    size: Size
    clips: tuple[EncodedClip | ClipFrames, ...]


class BatchKey(NamedTuple):
    """A `BatchKey` says what a batch is made of.

    Args:
        draw: Names what is drawn, so that it depends on this alone; ``None`` draws nothing.
        items: Positions of its items, all of one bucket.
    """

    draw: str | None
    items: tuple[int, ...]


class TrainingBatches(Dataset[dict[str, Any]]):
    """A `TrainingBatches` makes the batch of a `BatchKey`.

    Args:
        examples: What is trained on.
        batches: How.
    """

    def __init__(self, examples: Sequence[ReadyExample], batches: Batches) -> None:
        self.items = self.group(examples)
        self.seed, self.on_error = batches.seed, batches.on_error
        self.kind = "latents" if batches.cache is not None else "frames"
        self.buckets: dict[Size, list[int]] = {}
        self._places = []
        for position, item in enumerate(self.items):
            bucket = self.buckets.setdefault(item[0].size, [])
            self._places.append(len(bucket))
            bucket.append(position)

    def __len__(self) -> int:
        """Count the items: clips, or sources with their targets."""
        return len(self.items)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """Make a batch, the same for the same key.

        Raises:
            ValueError: Nothing in the bucket can be read, or a clip cannot where ``on_error`` is ``raise``.
        """
        generator = None if key.draw is None else make_generator(self.seed, key.draw, 0)
        return self.collate([self._load(position, generator) for position in key.items])

    @abstractmethod
    def group(self, examples: Sequence[ReadyExample]) -> list[list[ReadyExample]]:
        """Make the items of examples: of each those that are loaded together, of one bucket."""

    @abstractmethod
    def load(self, item: Sequence[ReadyExample], generator: torch.Generator | None) -> Any:
        """Load what an item gives to a batch."""

    @abstractmethod
    def collate(self, loaded: list[Any]) -> dict[str, Any]:
        """Make a batch of what was loaded."""

    def _load(self, position: int, generator: torch.Generator | None) -> Any:
        """Load an item; the next one of its bucket stands for one that cannot be read after all."""
        bucket, place = self.buckets[self.items[position][0].size], self._places[position]
        for other in itertools.chain(bucket[place:], bucket[:place]):
            try:
                return self.load(self.items[other], generator)
            except (OSError, ValueError) as error:
                if self.on_error == "raise" or self.kind == "latents":
                    raise
                reason = " ".join(str(error).split())
                warnings.warn(f"{self.items[other][0].example.origin}: left out of a batch: {reason}", stacklevel=2)
        raise ValueError(f"no clip of the bucket {self.items[position][0].size} can be read")


class CaptionedBatches(TrainingBatches):
    """A `CaptionedBatches` makes ``{"latents" or "frames": (b, f, c, h, w), "prompts": [b]}``."""

    def group(self, examples: Sequence[ReadyExample]) -> list[list[ReadyExample]]:
        """Take each example alone."""
        return [[example] for example in examples]

    def load(self, item: Sequence[ReadyExample], generator: torch.Generator | None) -> tuple[Tensor, str]:
        """Load a clip and its caption."""
        return item[0].clips[0].load(generator), item[0].example.clip.prompt

    def collate(self, loaded: list[tuple[Tensor, str]]) -> dict[str, Any]:
        """Stack clips."""
        return {self.kind: torch.stack([clip for clip, _ in loaded]), "prompts": [prompt for _, prompt in loaded]}


class PairBatches(TrainingBatches):
    """A `PairBatches` makes batches of sources, each with one or several targets.

    A batch is ``{"source": (s, f, c, h, w), "target": (t, f, c, h, w), "reads": (t,) int64, the source of each target,
    "source_prompts": [s], "target_prompts": [t]}``. Frames are under ``source_frames`` and ``target_frames`` instead.

    Args:
        examples: What is trained on.
        batches: How.
        targets: Targets of a source in a training batch at most, >= 1; of more as many are drawn.
    """

    def __init__(self, examples: Sequence[ReadyExample], batches: Batches, targets: int = 1) -> None:
        super().__init__(examples, batches)
        self.targets = targets

    def group(self, examples: Sequence[ReadyExample]) -> list[list[ReadyExample]]:
        """Put together the examples of one source, of one bucket."""
        groups: dict[Any, list[ReadyExample]] = {}
        for example in examples:
            groups.setdefault((example.example.videos[0], example.size), []).append(example)
        return list(groups.values())

    def load(
        self, item: Sequence[ReadyExample], generator: torch.Generator | None
    ) -> tuple[Tensor, str, list[tuple[Tensor, str]]]:
        """Load a source and some of its targets, with their prompts."""
        chosen = list(item)
        if generator is not None:
            order = torch.randperm(len(item), generator=generator)[: self.targets]
            chosen = [item[position] for position in order.tolist()]
        source = chosen[0].example.source
        assert source is not None
        targets = [(one.clips[1].load(generator), one.example.clip.prompt) for one in chosen]
        return chosen[0].clips[0].load(generator), source.prompt, targets

    def collate(self, loaded: list[tuple[Tensor, str, list[tuple[Tensor, str]]]]) -> dict[str, Any]:
        """Stack sources and targets."""
        suffix = "" if self.kind == "latents" else "_frames"
        targets = [target for _, _, several in loaded for target in several]
        return {
            f"source{suffix}": torch.stack([source for source, _, _ in loaded]),
            f"target{suffix}": torch.stack([clip for clip, _ in targets]),
            "reads": torch.tensor([k for k, (_, _, several) in enumerate(loaded) for _ in several]),
            "source_prompts": [prompt for _, prompt, _ in loaded],
            "target_prompts": [prompt for _, prompt in targets],
        }

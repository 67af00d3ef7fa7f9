"""A data module yields clips of moving shapes for training, validation and prediction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ddim_lightning.data.streams import get_progress, make_generator
from ddim_lightning.tiny.shapes import SIZE, WORDS, Scene, mask, render, sample_edit, sample_scene
from ddim_lightning.types import Clip

_ALIGN = 8


def sample_crop(scene: Scene, frames: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """Cut a square that the object passes through, aligned to 8 pixels so that it is a window of the latents too.

    Args:
        scene: The scene that was rendered.
        frames: (f, c, h, w), the rendered clip.
        crop: Side of the square in pixels, a multiple of 8.
        generator: The only source of randomness.

    Returns:
        (f, c, crop, crop)
    """
    passed = mask(scene).any(0).nonzero()
    top, left = (
        _ALIGN * round((int(at) - crop * float(torch.rand((), generator=generator))) / _ALIGN)
        for at in passed[int(torch.randint(len(passed), (), generator=generator))]
    )
    top, left = (min(max(at, 0), SIZE - crop) for at in (top, left))
    return frames[..., top : top + crop, left : left + crop]


class ShapesDataModule(LightningDataModule):
    """A `ShapesDataModule` yields clips of moving shapes: endless for training, fixed for validation and prediction.

    A training batch is ``{"frames": (b, 9, 3, h, w) uint8, "prompts": [caption, ...]}``; a validation batch likewise,
    of whole frames. Prediction yields one `Clip` at a time, with captions of edited scenes as its prompts.

    Args:
        batch_size: Crops in a training batch.
        crop: Side of a training crop in pixels, a multiple of 8 up to 64; 64 trains on whole frames.
        full_every: Every so many batches one is of whole frames instead, smaller to take the same time; 0 is never.
        val_clips: Clips in the validation set.
        predict_clips: Clips to predict.
        edits: How each clip is to be edited: per prompt the changed words joined by ``+``, for example
            ``("color", "shape+direction")``.
        num_workers: Processes that render training batches; 0 renders in the main process, in a millisecond a clip.
        seed: Of all scenes; splits are unrelated under the same seed.

    Raises:
        ValueError: A crop that is no multiple of 8 or larger than a frame, an edit of words a scene does not have.
    """

    def __init__(
        self,
        batch_size: int = 4,
        crop: int = 32,
        full_every: int = 3,
        val_clips: int = 16,
        predict_clips: int = 8,
        edits: Sequence[str] = ("color", "shape"),
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if crop % _ALIGN or not 0 < crop <= SIZE:
            raise ValueError(f"crop must be a multiple of {_ALIGN} up to {SIZE}, got {crop}")
        if unknown := {word for kind in edits for word in kind.split("+")} - set(WORDS):
            raise ValueError(f"edits must be of {', '.join(WORDS)}, got {', '.join(sorted(unknown))}")
        self.batch_size, self.crop, self.full_every = batch_size, crop, full_every
        self.val_clips, self.predict_clips, self.edits = val_clips, predict_clips, tuple(edits)
        self.num_workers, self.seed = num_workers, seed

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Endless batches, sharded over ranks; a resumed run goes on with the batch it would have come to."""
        rank, world, done = get_progress(self.trainer)
        stream = _TrainStream(self, start=done * world + rank, stride=world)
        return DataLoader(stream, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Whole clips, the same ones every time."""
        scenes = [sample_scene(make_generator(self.seed, "val", i)) for i in range(self.val_clips)]
        items = [{"frames": render(scene), "prompts": scene.caption} for scene in scenes]
        return DataLoader(items, batch_size=8)  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader[Clip]:
        """One `Clip` at a time; the truth of its edits is in `predict_scenes`."""
        clips = [
            Clip(
                id=f"shapes-{i:03d}",
                frames=render(scene),
                prompts=tuple(edited.caption for edited in wanted),
                source_prompt=scene.caption,
            )
            for i, (scene, wanted) in enumerate(self.predict_scenes())
        ]
        return DataLoader(clips, batch_size=None)  # type: ignore[arg-type]

    def predict_scenes(self) -> list[tuple[Scene, tuple[Scene, ...]]]:
        """The scene behind every predicted clip, and behind each of its prompts in order."""
        scenes = []
        for i in range(self.predict_clips):
            generator = make_generator(self.seed, "predict", i)
            scene = sample_scene(generator)
            scenes.append((scene, tuple(sample_edit(scene, kind.split("+"), generator) for kind in self.edits)))
        return scenes


class _TrainStream(IterableDataset[dict[str, Any]]):
    """Endless batches; batch ``i`` depends on the data module's seed and ``i`` alone."""

    def __init__(self, data: ShapesDataModule, start: int, stride: int) -> None:
        self.seed, self.crop, self.full_every = data.seed, data.crop, data.full_every
        self.crops = data.batch_size
        self.whole = max(1, data.batch_size * data.crop**2 // SIZE**2)
        self.start, self.stride = start, stride

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in itertools.count(self.start + number * self.stride, workers * self.stride):
            yield self.make_batch(index)

    def make_batch(self, index: int) -> dict[str, Any]:
        generator = make_generator(self.seed, "train", index)
        whole = self.full_every > 0 and index % self.full_every == 0
        frames, prompts = [], []
        for _ in range(self.whole if whole else self.crops):
            scene = sample_scene(generator)
            clip = render(scene)
            frames.append(clip if whole else sample_crop(scene, clip, self.crop, generator))
            prompts.append(scene.caption)
        return {"frames": torch.stack(frames), "prompts": prompts}

"""A data module encodes clips of shapes once, for training the tiny transformer and its text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from ddim_lightning.data.streams import get_progress, make_generator
from ddim_lightning.tiny.scene_latents import EndlessBatches, SceneLatents, write_scenes
from ddim_lightning.tiny.shapes import sample_scene


class ShapesLatentsDataModule(LightningDataModule):
    """A `ShapesLatentsDataModule` yields latents drawn from posteriors that were encoded once, with their captions.

    A batch is ``{"latents": (b, 3, 8, 16, 16) float32, scaled, "prompts": [caption, ...]}``. Training draws scenes at
    random without end; each drawing samples the posterior anew.

    Args:
        vae: Folder of the VAE in diffusers' layout.
        cache: The safetensors file of the posteriors; encoded and written where it is missing.
        scenes: Training scenes in the cache.
        val_scenes: Validation scenes, encoded along.
        batch_size: Clips in a batch, for training and validation.
        dtype: Autocast while encoding: ``bfloat16`` takes under half the time on a CPU with it, ``float32`` is exact.
        seed: Of scenes, draws and posteriors.

    Raises:
        ValueError: A cache that holds another number of scenes, or was made under another seed.
    """

    def __init__(
        self,
        vae: str,
        cache: str,
        scenes: int = 8192,
        val_scenes: int = 192,
        batch_size: int = 48,
        dtype: str = "bfloat16",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.vae, self.cache, self.scenes, self.val_scenes = vae, Path(cache), scenes, val_scenes
        self.batch_size, self.dtype, self.seed = batch_size, dtype, seed

    def prepare_data(self) -> None:
        """Encode what the cache does not hold, on one process."""
        if self.cache.is_file():
            return
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        counts = {"train": self.scenes, "val": self.val_scenes}
        splits = {
            split: [sample_scene(make_generator(self.seed, split, i)) for i in range(count)]
            for split, count in counts.items()
        }
        write_scenes(self.cache, self.vae, splits, seed=self.seed, dtype=self.dtype, device=device)

    def setup(self, stage: str) -> None:
        """Read the cache."""
        self._latents = SceneLatents(self.cache, {"train": self.scenes, "val": self.val_scenes}, self.seed)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Endless random batches, sharded over ranks; a resumed run goes on with the batch it would have come to."""
        rank, world, done = get_progress(self.trainer)
        return DataLoader(EndlessBatches(self.make_train_batch, done * world + rank, world), batch_size=None)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The means of the validation scenes, the same every time."""
        batches = [
            self._make_batch("val", torch.arange(first, min(first + self.batch_size, self.val_scenes)), None)
            for first in range(0, self.val_scenes, self.batch_size)
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def make_train_batch(self, index: int) -> dict[str, Any]:
        """Make training batch ``index``, which depends on the seed and the index alone."""
        generator = make_generator(self.seed, "draw", index)
        chosen = torch.randint(self.scenes, (self.batch_size,), generator=generator)
        return self._make_batch("train", chosen, generator)

    def _make_batch(self, split: str, chosen: Tensor, generator: torch.Generator | None) -> dict[str, Any]:
        prompts = [sample_scene(make_generator(self.seed, split, int(i))).caption for i in chosen]
        return {"latents": self._latents.draw(split, chosen, generator), "prompts": prompts}

"""A data module encodes clips of shapes once, for training the tiny transformer and its text encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ddim_lightning.data.streams import get_progress, make_generator
from ddim_lightning.tiny.shapes import Scene, render, sample_scene


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
        vae = AutoencoderKLCogVideoX.from_pretrained(self.vae, use_safetensors=True).to(device).eval()
        tensors = {}
        for split, count in (("train", self.scenes), ("val", self.val_scenes)):
            rank_zero_info(f"Encoding {count} scenes for {split}")
            scenes = [sample_scene(make_generator(self.seed, split, i)) for i in range(count)]
            mean, std = encode_scenes(vae, scenes, getattr(torch, self.dtype))
            tensors[f"{split}.mean"], tensors[f"{split}.std"] = mean, std
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        tensors["scaling_factor"] = torch.tensor(vae.config.scaling_factor)
        tensors["seed"] = torch.tensor(self.seed)
        draft = self.cache.with_suffix(".part")
        save_file(tensors, draft)
        draft.rename(self.cache)

    def setup(self, stage: str) -> None:
        """Read the cache."""
        self._tensors = load_file(self.cache)
        found = tuple(len(self._tensors[f"{split}.mean"]) for split in ("train", "val")), int(self._tensors["seed"])
        if found != ((self.scenes, self.val_scenes), self.seed):
            wanted = (self.scenes, self.val_scenes), self.seed
            raise ValueError(f"cache must hold (scenes, val_scenes), seed of {wanted}, got {found} in {self.cache}")

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Endless random batches, sharded over ranks; a resumed run goes on with the batch it would have come to."""
        rank, world, done = get_progress(self.trainer)
        return DataLoader(_LatentStream(self, done * world + rank, world), batch_size=None)

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
        latents = self._tensors[f"{split}.mean"][chosen].float()
        if generator is not None:
            std = self._tensors[f"{split}.std"][chosen].float()
            latents = latents + std * torch.randn(latents.shape, generator=generator)
        prompts = [sample_scene(make_generator(self.seed, split, int(i))).caption for i in chosen]
        return {"latents": latents * self._tensors["scaling_factor"], "prompts": prompts}


@torch.no_grad()
def encode_scenes(vae: AutoencoderKLCogVideoX, scenes: Sequence[Scene], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Encode scenes.

    Args:
        vae: The autoencoder; the scenes are encoded on its device.
        scenes: What is encoded.
        dtype: Of autocast.

    Returns:
        Means and standard deviations of the posteriors, (scenes, f, c, h, w) float16 each, on the CPU, not scaled.
    """
    means, stds = [], []
    for first in range(0, len(scenes), 8):
        frames = torch.stack([render(scene) for scene in scenes[first : first + 8]]).to(vae.device)
        with torch.autocast(vae.device.type, dtype, enabled=dtype != torch.float32):
            posterior = vae.encode(frames.transpose(1, 2).float() / 127.5 - 1).latent_dist
        means.append(posterior.mean.transpose(1, 2).half().cpu())
        stds.append(posterior.std.transpose(1, 2).half().cpu())
    return torch.cat(means), torch.cat(stds)


class _LatentStream(IterableDataset[dict[str, Any]]):
    def __init__(self, data: ShapesLatentsDataModule, start: int, stride: int) -> None:
        self.data, self.start, self.stride = data, start, stride

    def __iter__(self) -> Iterator[dict[str, Any]]:
        index = self.start
        while True:
            yield self.data.make_train_batch(index)
            index += self.stride

"""Scenes are encoded once; trainings draw latents from the posteriors that a file keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import IterableDataset

from ddim_lightning.tiny.shapes import Scene, render


def write_scenes(
    cache: Path, vae: str, splits: Mapping[str, Sequence[Scene]], *, seed: int, dtype: str, device: torch.device
) -> None:
    """Encode scenes into a safetensors file; it appears whole or not at all.

    Args:
        cache: The file.
        vae: Folder of the VAE in diffusers' layout.
        splits: Scenes by the name of their split.
        seed: Of the scenes, kept beside them.
        dtype: Autocast while encoding.
        device: Where they are encoded.
    """
    model = AutoencoderKLCogVideoX.from_pretrained(vae, use_safetensors=True).to(device).eval()
    tensors = {"scaling_factor": torch.tensor(model.config.scaling_factor), "seed": torch.tensor(seed)}
    for split, scenes in splits.items():
        rank_zero_info(f"Encoding {len(scenes)} scenes for {split}")
        tensors[f"{split}.mean"], tensors[f"{split}.std"] = encode_scenes(model, scenes, getattr(torch, dtype))
    cache.parent.mkdir(parents=True, exist_ok=True)
    draft = cache.with_suffix(".part")
    save_file(tensors, draft)
    draft.rename(cache)


class SceneLatents:
    """The `SceneLatents` are what `write_scenes` wrote.

    Args:
        cache: The file.
        counts: How many scenes each split must have.
        seed: Of which seed they must be.

    Raises:
        ValueError: A file of other scenes.
    """

    def __init__(self, cache: Path, counts: Mapping[str, int], seed: int) -> None:
        self._tensors = load_file(cache)
        found = {split: len(self._tensors[f"{split}.mean"]) for split in counts}, int(self._tensors["seed"])
        if found != (dict(counts), seed):
            raise ValueError(f"cache must hold scenes and seed of {(dict(counts), seed)}, got {found} in {cache}")

    def draw(self, split: str, chosen: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Return scaled latents, (scenes, f, c, h, w) float32, or (f, c, h, w) of one.

        Args:
            split: Its name.
            chosen: Which of its scenes.
            generator: Samples the posteriors; ``None`` takes their means.
        """
        latents = self._tensors[f"{split}.mean"][chosen].float()
        if generator is not None:
            std = self._tensors[f"{split}.std"][chosen].float()
            latents = latents + std * torch.randn(latents.shape, generator=generator)
        return latents * self._tensors["scaling_factor"]


class EndlessBatches(IterableDataset[dict[str, Any]]):
    """The `EndlessBatches` are batches ``start``, ``start + stride``, ... as a function makes them.

    Args:
        make: Makes the batch of a number.
        start: The first number.
        stride: How far the numbers are apart: that of ranks.
    """

    def __init__(self, make: Callable[[int], dict[str, Any]], start: int, stride: int) -> None:
        self.make, self.start, self.stride = make, start, stride

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Make one after the other."""
        return map(self.make, itertools.count(self.start, self.stride))


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

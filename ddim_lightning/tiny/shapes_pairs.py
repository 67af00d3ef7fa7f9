"""A data module yields scenes of shapes with edits of them, encoded once, for training editors of the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from ddim_lightning.data.streams import get_progress, make_generator
from ddim_lightning.models.source import BUNDLED
from ddim_lightning.tiny.scene_latents import EndlessBatches, SceneLatents, write_scenes
from ddim_lightning.tiny.shapes import Scene, sample_edit, sample_scene

KINDS: dict[str, tuple[str, ...]] = {
    "color": ("color",),
    "shape": ("shape",),
    "both": ("shape", "color"),
    "background": ("background",),
    "direction": ("direction",),
}
"""The edits of a scene by name, and the words that they change."""
_GROUP = 1 + len(KINDS)
"""Scenes of a group: one, and its edits."""


def sample_group(generator: torch.Generator) -> list[Scene]:
    """Draw a scene and one edit of it of each of `KINDS`, of combinations that are trained on.

    Args:
        generator: The only source of randomness; lives on the CPU.

    Returns:
        The scene first.
    """
    scene = sample_scene(generator)
    return [scene, *(sample_edit(scene, names, generator) for names in KINDS.values())]


def name_changes(source: Scene, target: Scene) -> str:
    """Name the words that an edit changes and no others, in the order of a caption: ``green circle``."""
    order = ("color", "shape", "direction", "background")
    return " ".join(getattr(target, name) for name in order if getattr(target, name) != getattr(source, name))


class ShapesPairs(LightningDataModule):
    """A `ShapesPairs` yields batches of scenes, each with several edits of it, from posteriors that were encoded once.

    The scenes of a group differ in what an edit changes; any of them is a source, and any other its target. A batch is
    that of `PairDataModule`: ``{"source": (s, 3, 8, 16, 16) float32, scaled, "target": (t, 3, 8, 16, 16), "reads": (t,)
    int64, "source_prompts": [s], "target_prompts": [t]}``. Training draws without end. In validation the source is the
    scene and the targets all its edits, and nothing is drawn.

    Args:
        vae: Folder of the VAE in diffusers' layout, or ``tiny`` for that of the bundled model.
        cache: The safetensors file of the posteriors; encoded and written where it is missing.
        groups: Training groups, of six scenes each.
        val_groups: Validation groups, encoded along.
        sources: Sources in a batch.
        targets: Targets of each in a training batch.
        identity: Share of the targets that are the source itself, the very same latents under its caption, 0 .. 1.
        changed_words: Share of the other targets whose prompt is the changed words alone, 0 .. 1.
        dtype: Autocast while encoding: ``bfloat16`` takes under half the time on a CPU with it, ``float32`` is exact.
        seed: Of groups, draws and posteriors.

    Raises:
        ValueError: An argument out of its range; a cache that holds another number of groups, or was made under
            another seed.
    """

    def __init__(
        self,
        vae: str,
        cache: str,
        groups: int = 1000,
        val_groups: int = 40,
        sources: int = 4,
        targets: int = 4,
        identity: float = 0.05,
        changed_words: float = 0.0,
        dtype: str = "bfloat16",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, count in (("groups", groups), ("val_groups", val_groups), ("sources", sources), ("targets", targets)):
            if count < 1:
                raise ValueError(f"{name}: must be at least 1, got {count}")
        for name, share in (("identity", identity), ("changed_words", changed_words)):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name}: must lie in 0 .. 1, got {share}")
        self.vae = str(BUNDLED / "vae") if vae == "tiny" else vae
        self.cache, self.dtype, self.seed = Path(cache), dtype, seed
        self.groups, self.val_groups, self.sources, self.targets = groups, val_groups, sources, targets
        self.identity, self.changed_words = identity, changed_words

    def prepare_data(self) -> None:
        """Encode what the cache does not hold, on one process."""
        if self.cache.is_file():
            return
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        counts = {"train": self.groups, "val": self.val_groups}
        splits = {
            split: [scene for index in range(count) for scene in self.list_scenes(split, index)]
            for split, count in counts.items()
        }
        write_scenes(self.cache, self.vae, splits, seed=self.seed, dtype=self.dtype, device=device)

    def setup(self, stage: str) -> None:
        """Read the cache."""
        counts = {"train": _GROUP * self.groups, "val": _GROUP * self.val_groups}
        self._latents = SceneLatents(self.cache, counts, self.seed)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Endless random batches, sharded over ranks; a resumed run goes on with the batch it would have come to."""
        rank, world, done = get_progress(self.trainer)
        return DataLoader(EndlessBatches(self.make_train_batch, done * world + rank, world), batch_size=None)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The scenes of validation with all their edits, by the means of their posteriors: the same every time."""
        indices = range(self.val_groups)
        batches = [
            self._make_val_batch(indices[at : at + self.sources]) for at in range(0, self.val_groups, self.sources)
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def list_scenes(self, split: str, index: int) -> list[Scene]:
        """List the scenes of a group, which depends on the seed, the split (``train``, ``val``) and the index alone."""
        return sample_group(make_generator(self.seed, f"{split} pairs", index))

    def make_train_batch(self, index: int) -> dict[str, Any]:
        """Make training batch ``index``, which depends on the seed and the index alone."""
        generator = make_generator(self.seed, "draw pairs", index)

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        def happens(share: float) -> bool:
            return float(torch.rand((), generator=generator)) < share

        batch = _PairBatch()
        for group in (draw(self.groups) for _ in range(self.sources)):
            scenes = self.list_scenes("train", group)
            place = draw(len(scenes))
            source, latents = scenes[place], self._load("train", group, place, generator)
            batch.add_source(latents, source.caption)
            for _ in range(self.targets):
                if happens(self.identity):
                    batch.add_target(latents, source.caption)
                    continue
                other = (place + 1 + draw(len(scenes) - 1)) % len(scenes)
                target = scenes[other]
                prompt = name_changes(source, target) if happens(self.changed_words) else target.caption
                batch.add_target(self._load("train", group, other, generator), prompt)
        return batch.make()

    def _make_val_batch(self, groups: range) -> dict[str, Any]:
        batch = _PairBatch()
        for group in groups:
            for place, scene in enumerate(self.list_scenes("val", group)):
                (batch.add_target if place else batch.add_source)(self._load("val", group, place), scene.caption)
        return batch.make()

    def _load(self, split: str, group: int, place: int, generator: torch.Generator | None = None) -> Tensor:
        return self._latents.draw(split, _GROUP * group + place, generator)


class _PairBatch:
    """A `_PairBatch` collects sources and behind each its targets."""

    def __init__(self) -> None:
        self.sources: list[tuple[Tensor, str]] = []
        self.targets: list[tuple[Tensor, str]] = []
        self.reads: list[int] = []

    def add_source(self, latents: Tensor, prompt: str) -> None:
        self.sources.append((latents, prompt))

    def add_target(self, latents: Tensor, prompt: str) -> None:
        self.reads.append(len(self.sources) - 1)
        self.targets.append((latents, prompt))

    def make(self) -> dict[str, Any]:
        return {
            "source": torch.stack([latents for latents, _ in self.sources]),
            "target": torch.stack([latents for latents, _ in self.targets]),
            "reads": torch.tensor(self.reads),
            "source_prompts": [prompt for _, prompt in self.sources],
            "target_prompts": [prompt for _, prompt in self.targets],
        }

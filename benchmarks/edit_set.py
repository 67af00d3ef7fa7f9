"""The edits have a truth that is known to the pixel: one split to choose on, one to report on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_lightning.data.streams import make_generator
from ddim_lightning.tiny.shapes import WORDS, Scene, mask, render, sample_edit, sample_scene
from ddim_lightning.types import Frames

KINDS = {
    "color": ("color",),
    "shape": ("shape",),
    "both": ("shape", "color"),
    "background": ("background",),
    "direction": ("direction",),
}
"""Kind of edit to the words that it changes."""

SPLITS = ("dev", "test")
"""Settings are chosen on the first and reported on the second."""

_SEED = 20


@dataclass(frozen=True)
class ShapesEdit:
    """A `ShapesEdit` is one edit: two scenes that differ in the words of its kind and in nothing else.

    Args:
        id: For example ``test-shape-03``; fixed for good, with its scenes.
        kind: One of `KINDS`.
        source: The clip that is edited.
        target: Its truth, which the prompt describes.
    """

    id: str
    kind: str
    source: Scene
    target: Scene

    @property
    def changed(self) -> tuple[str, ...]:
        """The words that the edit changes."""
        return KINDS[self.kind]

    @property
    def kept(self) -> tuple[str, ...]:
        """The words that it keeps."""
        return tuple(word for word in WORDS if word not in self.changed)

    @property
    def truth(self) -> Frames:
        """The rendered target, (9, 3, 64, 64) uint8."""
        return render(self.target)

    @property
    def inside(self) -> Tensor:
        """Where the source's object or the target's is, (9, 64, 64) bool."""
        return torch.logical_or(mask(self.source), mask(self.target))


def make_edit_set(split: str, count: int) -> list[ShapesEdit]:
    """Make the first edits of a split: one of each kind, then the second of each kind, and so on.

    Scenes and edits are combinations that the model was trained on, under seeds that no training has seen.

    Args:
        split: One of `SPLITS`.
        count: How many, >= 1.

    Raises:
        ValueError: Another split, or no edit.
    """
    if split not in SPLITS:
        raise ValueError(f"split: must be one of {', '.join(SPLITS)}, got {split!r}")
    if count < 1:
        raise ValueError(f"count: must be at least 1, got {count}")
    return [_make_edit(split, tuple(KINDS)[i % len(KINDS)], i // len(KINDS)) for i in range(count)]


def _make_edit(split: str, kind: str, index: int) -> ShapesEdit:
    # The set was drawn under the British spelling: its seeds and ids stay, so that records stay comparable.
    drawn_as = kind.replace("color", "colour")  # codespell:ignore colour
    generator = make_generator(_SEED, f"edits/{split}/{drawn_as}", index)
    source = sample_scene(generator)
    return ShapesEdit(f"{split}-{drawn_as}-{index:02}", kind, source, sample_edit(source, KINDS[kind], generator))

"""The demonstration edits clips of moving shapes, whose edits have a known answer, by the bundled model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from ddim_lightning.engine.config import Outputs, Schedule
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.models.source import BUNDLED_ADAPTER
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.tiny.shapes import WORDS, Scene, render
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule

CLIPS, EDITS, STEPS = 8, ("color", "shape"), 20


def make_demo() -> tuple[DDIMInversionModule, DDIMInversionModule, ShapesDataModule, TruthTable]:
    """Make two modules, the clips, and what compares their edits with the truth.

    The first edits without training, as is recommended for the model, the second by the adapter of the model.
    """
    data, outputs = ShapesDataModule(predict_clips=CLIPS, edits=EDITS), Outputs(on_error="raise")
    module = DDIMInversionModule("tiny", schedule=Schedule(num_inference_steps=STEPS), outputs=outputs)
    adapted = DDIMInversionModule("tiny", lora=BUNDLED_ADAPTER, outputs=replace(outputs, reconstruct=False))
    return module, adapted, data, TruthTable(data.predict_scenes())


class TruthTable(Callback):
    """A `TruthTable` compares each edit of a rendered scene with the rendering of the edited scene.

    A second run over the clips, by the adapter, adds its decibels to the rows as ``in_context``.

    Args:
        scenes: The scene behind every clip and behind each of its prompts, in order.
    """

    def __init__(self, scenes: Sequence[tuple[Scene, Sequence[Scene]]]) -> None:
        self.scenes = scenes
        self.rows: list[dict[str, Any]] = []

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the edits of one clip, in decibels."""
        source, wanted = self.scenes[batch_idx]
        known = [row for row in self.rows if row["clip"] == outputs.clip.id]
        for k, (edited, scene) in enumerate(zip(outputs.edits, wanted, strict=True)):
            truth = render(scene) / 255
            if known:
                known[k]["in_context"] = psnr(edited.frames / 255, truth)
                continue
            changes = {name: (getattr(source, name), getattr(scene, name)) for name in WORDS}
            self.rows.append(
                {
                    "clip": outputs.clip.id,
                    "change": ", ".join(f"{old} to {new}" for old, new in changes.values() if old != new),
                    "vae": outputs.metrics["vae"]["psnr"],
                    "reconstruction": outputs.metrics["reconstruction"]["psnr"],
                    "edit": psnr(edited.frames / 255, truth),
                    "do_nothing": psnr(outputs.clip.frames / 255, truth),
                }
            )

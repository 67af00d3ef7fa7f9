"""A callback inverts, reconstructs and edits a few clips while a model trains, in anybody's LightningModule."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from PIL import Image

from ddim_lightning.callbacks.known_clips import KnownClip, take_clips
from ddim_lightning.callbacks.live_engine import EngineLender, LiveEngine, Methods
from ddim_lightning.callbacks.sheet_log import find_folder, log_sheet
from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.engine.clip_job import ClipJob, make_clip_seed
from ddim_lightning.engine.config import Outputs, Schedule
from ddim_lightning.engine.parts import PartSpec
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.report.sheet import Row, make_sheet
from ddim_lightning.types import Clip, ClipResult

_ROUND_TRIPS = ("psnr", "psnr_vs_vae")
_EDITS = ("psnr", "psnr_vs_source", "ssim_vs_source")


class InversionCallback(Callback):
    """An `InversionCallback` shows, while a model trains, how well its inversions come back and how well it edits.

    It works in a `DDIMInversionModule` and in any LightningModule that holds a `CogVideoXTransformer3DModel` somewhere,
    and uses the weights as they are; in validations averaged ones, where a `WeightAveraging` callback keeps some. The
    training goes on as if it had not been there: random states, gradients and their flags, modes, devices and attention
    processors are as before. What it logs, as means over clips and edits:

    - ``val/edit_psnr``: of the edits against their truths, in dB, where a validation batch holds pairs.
    - ``val/edit_psnr_vs_source`` and ``val/edit_ssim_vs_source``: how much the edits keep.
    - ``val/round_trip``: the relative L2 error of latents that were inverted and reconstructed; 0 is exact.
    - ``val/round_trip_psnr``: of the reconstructions against the clips, in dB.
    - ``val/round_trip_psnr_vs_vae``: likewise, against the clips through the VAE alone.

    They go to every logger and to ``trainer.callback_metrics``, for early stopping and checkpoints. A sheet of each
    evaluation, edits above their truths, is ``inversions/step-000300.png`` in the logger's folder; TensorBoard and
    loggers with a ``log_image`` get it, too.

    A clip costs ``inverter.count_nfe(N)`` + N + the edits' ``editor.count_nfe`` function evaluations, for N steps. The
    first process evaluates alone while the others wait, so the weights must be whole on it.

    Args:
        clips: So many clips, or edits of pairs, the first of a validation's first batch: `PairDataModule` has pairs.
            They are evaluated in every validation. Or clips of your own, each inverted and edited under its
            ``prompts``, which need no validation.
        model: Where the VAE, the text encoder, the tokenizer and the scheduler come from: ``tiny``, a folder or a hub
            id, read at the first evaluation and kept on the host between evaluations; or a mapping of these four, which
            are moved to the training's device for an evaluation and back. ``None`` for a `DDIMInversionModule`, which
            has its own.
        transformer: The transformer's name in the module, as in ``get_submodule``; ``None`` finds the only one.
        every_n_epochs: Evaluates clips of your own at the end of every n-th epoch, >= 1; ``None`` is every one, or none
            with ``every_n_steps``.
        every_n_steps: Evaluates clips of your own after every n-th optimizer step, >= 1; ``None`` after none.
        reconstruct: Also reconstruct. Without it there is no ``val/round_trip``, and clips cost N less.
        schedule: See `DDIMInversionModule`; likewise ``inverter``, ``editor`` and ``guidance_scale``. ``None`` is what
            a `DDIMInversionModule` has itself, and otherwise its default. Fewer steps cost less.
        inverter: The inversion method.
        editor: The editing method.
        guidance_scale: Of the edits.
        inversion_prompt: Of the inversions in other modules than a `DDIMInversionModule`.
        seed: Of whatever the methods draw; the same at every evaluation.

    Raises:
        ValueError: An argument out of its range, or parts that are missing.
    """

    def __init__(
        self,
        clips: Sequence[Clip] | int = 4,
        model: str | Mapping[str, Any] | None = None,
        *,
        transformer: str | None = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        reconstruct: bool = True,
        schedule: Schedule | None = None,
        inverter: Inverter | PartSpec | None = None,
        editor: Editor | PartSpec | None = None,
        guidance_scale: float | None = None,
        inversion_prompt: str | None = "",
        seed: int = 0,
    ) -> None:
        count = clips if isinstance(clips, int) else len(clips)
        if count < 1:
            raise ValueError(f"clips: must be at least one, got {count or 'none'}")
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, or None, got {value}")
            if value is not None and isinstance(clips, int):
                raise ValueError(f"{name}: must be unset for clips of validations, see val_check_interval, got {value}")
        self.clips = clips if isinstance(clips, int) else [KnownClip(clip) for clip in clips]
        self.every_n_steps = every_n_steps
        self.every_n_epochs = 1 if every_n_epochs is every_n_steps is None else every_n_epochs
        self.outputs, self.seed = Outputs(reconstruct=reconstruct), seed
        methods = Methods(schedule, inverter, editor, guidance_scale, inversion_prompt)
        self._lender = EngineLender(methods, model, transformer)
        self._folder = Path()
        self._evaluated_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder."""
        self._folder, self._evaluated_at = find_folder(trainer, "inversions"), -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the module, before anything long starts.

        Raises:
            ValueError: No transformer, several, or a strategy that shards their weights.
        """
        self._lender.check(pl_module)
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            got = type(trainer.strategy).__name__
            raise ValueError(f"strategy: InversionCallback needs the weights whole on the first process, got {got}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the module where it is validated without a training."""
        self.on_fit_start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate clips of the first batch, while averaged weights are in place whatever the order of callbacks."""
        if isinstance(self.clips, int) and not (trainer.sanity_checking or batch_idx or dataloader_idx):
            values = self._evaluate(trainer, pl_module, batch)
            pl_module.log_dict(values, batch_size=1, sync_dist=True, add_dataloader_idx=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate clips of one's own where a step is due."""
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0:
            self._evaluate_own(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate clips of one's own where an epoch is due, unless its last step was."""
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._evaluate_own(trainer, pl_module)

    def _evaluate_own(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(self.clips, int) or trainer.global_step == self._evaluated_at:
            return
        self._evaluated_at = trainer.global_step
        values = self._evaluate(trainer, pl_module)
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
        # The loggers have them at this very step; for callbacks every process has to know.
        pl_module.log_dict(values, logger=False)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any = None) -> dict[str, float]:
        """Evaluate on the first process; the means, on every process."""
        values: dict[str, float] = {}
        if trainer.is_global_zero:
            with self._lender.lend(pl_module) as live, trainer.precision_plugin.forward_context():
                known = take_clips(batch, self.clips, live.engine) if isinstance(self.clips, int) else self.clips
                done = [(one, result) for one in known if (result := self._run(one.clip, live)) is not None]
            for one, result in done:
                for edit, truth in zip(result.edits, one.truths, strict=False):
                    edit.metrics["psnr"] = psnr(edit.frames / 255, truth / 255)
            values = summarize([result for _, result in done])
            if done:
                log_sheet(trainer, self._draw(done, trainer.global_step, live), self._folder, "inversions")
            if not values:
                step = trainer.global_step
                warnings.warn(f"InversionCallback: nothing could be measured at step {step}", stacklevel=2)
        return dict(trainer.strategy.broadcast(values))

    def _run(self, clip: Clip, live: LiveEngine) -> ClipResult | None:
        """Do a clip by itself: one that fails costs neither the others nor the training."""
        engine = live.engine
        try:
            texts = [engine.inversion_prompt, clip.source_prompt, clip.negative_prompt, *clip.prompts, ""]
            for text in texts:
                if text is not None:
                    engine.prompts.prepare(text)
            live.make_room()
            seed = make_clip_seed(self.seed, clip.id)
            return ClipJob(engine, clip, seed=seed, guidance_scale=live.guidance_scale, outputs=self.outputs).run()
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            warnings.warn(f"InversionCallback: clip {clip.id}: skipped: {reason}", stacklevel=2)
            return None

    def _draw(self, done: Sequence[tuple[KnownClip, ClipResult]], step: int, live: LiveEngine) -> Image.Image:
        rows = []
        for known, result in done:
            clip, round_trip = known.clip, result.metrics.get("reconstruction", {})
            rows.append(Row(clip.id, clip.frames, clip.source_prompt or ""))
            if result.reconstruction is not None:
                rows.append(Row("back", result.reconstruction, note=f"PSNR {round_trip['psnr']:.1f} dB"))
            for k, edit in enumerate(result.edits):
                note = f"PSNR {edit.metrics['psnr']:.1f} dB" if known.truths else ""
                rows.append(Row(f"edit {k:02d}", edit.frames, edit.prompt, note))
                rows += [Row(f"truth {k:02d}", truth) for truth in known.truths[k : k + 1]]
        # A sheet has frames of one shape.
        rows = [row for row in rows if row.frames.shape == rows[0].frames.shape]
        subtitle = f"{len(live.engine.schedule)} steps, guidance {live.guidance_scale:g}, seed {self.seed}"
        return make_sheet(rows, title=f"step {step}", subtitle=subtitle, fps=done[0][0].clip.fps)


def summarize(results: Sequence[ClipResult]) -> dict[str, float]:
    """Return the means over clips and edits that an `InversionCallback` logs; what is not known is left out."""
    back = [result.metrics["reconstruction"] for result in results if "reconstruction" in result.metrics]
    edits = [edit.metrics for result in results for edit in result.edits]
    errors = [result.diagnosis["level_errors"][-1] for result in results if "level_errors" in result.diagnosis]
    values = {"val/round_trip": errors}
    values |= {f"val/round_trip_{name}": [one[name] for one in back] for name in _ROUND_TRIPS}
    values |= {f"val/edit_{name}": [one[name] for one in edits if name in one] for name in _EDITS}
    return {name: fmean(numbers) for name, numbers in values.items() if numbers}

"""A callback inverts, reconstructs and edits a few clips while a model trains, in anybody's LightningModule."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from ddim_lightning.callbacks.sheet_log import find_folder, log_sheet
from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.engine.clip_job import ClipJob, make_clip_seed
from ddim_lightning.engine.config import Runtime, Schedule
from ddim_lightning.engine.parts import PartSpec
from ddim_lightning.models.source import resolve_model
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.report.sheet import Row, make_sheet
from ddim_lightning.types import Clip, ClipResult

_BESIDE = ("vae", "text_encoder", "tokenizer", "scheduler")


class InversionCallback(Callback):
    """An `InversionCallback` shows, while a model trains, how well its inversions come back and what it edits.

    It works in any LightningModule that holds a `CogVideoXTransformer3DModel` somewhere, and uses the weights as they
    are. The training goes on as if it had not been there: random states, gradients and their flags, modes, devices and
    attention processors are as before. What it logs, as means over the clips:

    - ``inversion/psnr``: of the reconstructions against the clips, in dB.
    - ``inversion/psnr_vs_vae``: likewise, against the clips through the VAE alone.
    - ``inversion/edit_psnr_vs_source`` and ``inversion/edit_ssim_vs_source``: how much the edits keep.

    They go to every logger and to ``trainer.callback_metrics``, for early stopping and checkpoints. A sheet of each
    evaluation is ``inversions/step-000300.png`` in the logger's folder; TensorBoard and loggers with a ``log_image``
    get it, too.

    A clip costs ``inverter.count_nfe(N)`` + N + the edits' ``editor.count_nfe`` function evaluations, for N steps. The
    first process evaluates alone while the others wait, so the weights must be whole on it.

    Args:
        clips: What is inverted and, under each of its ``prompts``, edited.
        model: Where the VAE, the text encoder, the tokenizer and the scheduler come from: ``tiny``, a folder or a hub
            id, read at the first evaluation and kept on the host between evaluations; or a mapping of these four, which
            are moved to the training's device for an evaluation and back.
        transformer: The transformer's name in the module, as in ``get_submodule``; ``None`` finds the only one.
        every_n_epochs: Evaluates at the end of every n-th epoch, >= 1; ``None`` at none.
        every_n_steps: Evaluates after every n-th optimizer step, >= 1; ``None`` after none.
        schedule: See `DDIMInversionModule`; likewise ``inverter``, ``editor``, ``guidance_scale`` and
            ``inversion_prompt``.
        inverter: The inversion method.
        editor: The editing method.
        guidance_scale: Of the edits.
        inversion_prompt: Of the inversions.
        seed: Of whatever the methods draw; the same at every evaluation.

    Raises:
        ValueError: An argument out of its range, or parts that are missing.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        model: str | Mapping[str, Any],
        *,
        transformer: str | None = None,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008, frozen
        inverter: Inverter | PartSpec | None = None,
        editor: Editor | PartSpec | None = None,
        guidance_scale: float | None = None,
        inversion_prompt: str | None = "",
        seed: int = 0,
    ) -> None:
        if not clips:
            raise ValueError("clips: must be at least one, got none")
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, or None, got {value}")
        if every_n_epochs is None and every_n_steps is None:
            raise ValueError("every_n_epochs: must be given where every_n_steps is not, got None for both")
        if isinstance(model, Mapping) and set(model) != set(_BESIDE):
            raise ValueError(f"model: must be a name, or a mapping of {', '.join(_BESIDE)}, got {sorted(model)}")
        self.clips, self.model, self.transformer, self.seed = list(clips), model, transformer, seed
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self._options: dict[str, Any] = {
            "schedule": schedule,
            "inverter": inverter,
            "editor": editor,
            "guidance_scale": guidance_scale,
            "inversion_prompt": inversion_prompt,
        }
        self._beside: dict[str, Any] | None = None if isinstance(model, str) else dict(model)
        self._folder = Path()
        self._evaluated_at = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the transformer and the folder, before anything long starts.

        Raises:
            ValueError: No transformer, several, or a strategy that shards their weights.
        """
        find_transformer(pl_module, self.transformer)
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            got = type(trainer.strategy).__name__
            raise ValueError(f"strategy: InversionCallback needs the weights whole on the first process, got {got}")
        self._folder = find_folder(trainer, "inversions")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate where a step is due."""
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._evaluated_at:
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate where an epoch is due, unless its last step was."""
        due = self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and trainer.global_step != self._evaluated_at:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluated_at = trainer.global_step
        values: dict[str, float] = {}
        if trainer.is_global_zero:
            results = self._run(trainer, pl_module)
            values = summarize(results)
            if results:
                log_sheet(trainer, self._draw(results, trainer.global_step), self._folder, "inversions")
        values = trainer.strategy.broadcast(values)
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
        # The loggers have them at this very step; for callbacks every process has to know.
        pl_module.log_dict(values, logger=False)

    def _run(self, trainer: Trainer, pl_module: LightningModule) -> list[ClipResult]:
        transformer = find_transformer(pl_module, self.transformer)
        with isolate_rng():
            if self._beside is None:
                assert isinstance(self.model, str)
                self._beside = load_beside(self.model, transformer)
            parts = [part for part in self._beside.values() if isinstance(part, nn.Module)]
            with _kept(transformer, pl_module, *parts), trainer.precision_plugin.forward_context():
                return self._do_clips(transformer, self._beside)

    def _do_clips(self, transformer: CogVideoXTransformer3DModel, beside: Mapping[str, Any]) -> list[ClipResult]:
        """Do the clips, each by itself: one that fails costs neither the others nor the training."""
        name = self.model if isinstance(self.model, str) else "loaded"
        runtime = Runtime(forward="diffusers", require_rotary=False)
        module = DDIMInversionModule.from_components(
            transformer=transformer, **beside, model=name, runtime=runtime, **self._options
        )
        host = beside["text_encoder"].device
        module.load(transformer.device)
        self._options["schedule"] = module.schedule  # with the steps that were taken
        results = []
        for clip in self.clips:
            try:
                texts = [module.inversion_prompt, clip.source_prompt, clip.negative_prompt, *clip.prompts, ""]
                module.encode_prompts([text for text in texts if text is not None])
                nn.Module.to(beside["text_encoder"], host)  # makes room
                module.engine.prompts.release()
                seed = make_clip_seed(self.seed, clip.id)
                job = ClipJob(module.engine, clip, seed=seed, guidance_scale=module.guidance_scale)
                results.append(job.run())
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                warnings.warn(f"InversionCallback: clip {clip.id}: skipped: {reason}", stacklevel=2)
        return results

    def _draw(self, results: Sequence[ClipResult], step: int) -> Any:
        rows = []
        for result in results:
            clip = result.clip
            assert isinstance(clip, Clip)
            assert result.reconstruction is not None
            note = f"PSNR {result.metrics['reconstruction']['psnr']:.1f} dB"
            rows += [Row(clip.id, clip.frames, clip.source_prompt or ""), Row("back", result.reconstruction, note=note)]
            rows += [Row(f"edit {k:02d}", edit.frames, edit.prompt) for k, edit in enumerate(result.edits)]
        # A sheet has frames of one shape.
        rows = [row for row in rows if row.frames.shape == rows[0].frames.shape]
        subtitle = f"{self._options['schedule'].num_inference_steps} steps, seed {self.seed}"
        return make_sheet(rows, title=f"step {step}", subtitle=subtitle, fps=self.clips[0].fps)


def find_transformer(module: nn.Module, name: str | None = None) -> CogVideoXTransformer3DModel:
    """Find the CogVideoX transformer of a module.

    Args:
        module: Holds it at any depth: under wrappers of peft, of `torch.compile`, in a list.
        name: Its name, as in ``get_submodule``; ``None`` where there is one only.

    Raises:
        ValueError: None of that name, none at all, or several.
    """
    found = {k: one for k, one in module.named_modules() if isinstance(one, CogVideoXTransformer3DModel)}
    if name is not None:
        if name not in found:
            raise ValueError(
                f"transformer: must be the name of one ({', '.join(found) or 'there is none'}), got {name!r}"
            )
        return found[name]
    if len(found) != 1:
        got = ", ".join(found) or f"a {type(module).__name__} without"
        raise ValueError(f"transformer: must be the only CogVideoXTransformer3DModel, or named, got {got}")
    return next(iter(found.values()))


def load_beside(model: str, transformer: CogVideoXTransformer3DModel) -> dict[str, Any]:
    """Load what a pipeline has beside its transformer, onto the host, in the transformer's dtype.

    Args:
        model: ``tiny``, a folder or a hub id.
        transformer: Takes the place of the model's own, which is not read.

    Raises:
        OSError: The model cannot be read.
        ValueError: Files that do not fit together.
    """
    pipeline = CogVideoXPipeline.from_pretrained(
        resolve_model(model), transformer=transformer, dtype=transformer.dtype, use_safetensors=True
    )
    return {name: getattr(pipeline, name) for name in _BESIDE}


def summarize(results: Sequence[ClipResult]) -> dict[str, float]:
    """Return the means over clips and edits that an `InversionCallback` logs."""
    back = [result.metrics["reconstruction"] for result in results]
    edits = [edit.metrics for result in results for edit in result.edits]
    values = {f"inversion/{name}": [one[name] for one in back] for name in ("psnr", "psnr_vs_vae")}
    values |= {f"inversion/edit_{name}": [one[name] for one in edits] for name in ("psnr_vs_source", "ssim_vs_source")}
    return {name: fmean(numbers) for name, numbers in values.items() if numbers}


@contextmanager
def _kept(transformer: CogVideoXTransformer3DModel, *modules: nn.Module) -> Iterator[None]:
    """Have modules afterwards as they were: modes, gradients' flags, devices of the parts beside, processors."""
    modes = {layer: layer.training for module in modules for layer in module.modules()}
    flags = {weight: weight.requires_grad for module in modules for weight in module.parameters()}
    places = {module: next(module.parameters()).device for module in modules[1:]}
    processors = {block.attn1: block.attn1.processor for block in transformer.transformer_blocks}
    try:
        yield
    finally:
        for attention, processor in processors.items():
            attention.processor = processor
        for module, device in places.items():
            nn.Module.to(module, device)
        for weight, flag in flags.items():
            weight.requires_grad_(flag)
        for layer, mode in modes.items():
            layer.training = mode
        if transformer.device.type == "cuda":  # pragma: no cover - cuda
            torch.cuda.empty_cache()

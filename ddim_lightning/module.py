"""The Lightning face: `predict_step` runs the whole job on a clip, `training_step` trains the denoiser."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import CogVideoXPipeline
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ddim_lightning.diffusion.editors import Editor, InversionFree
from ddim_lightning.diffusion.editors.fast import make_fast
from ddim_lightning.diffusion.inverters import Inverter, UniInv
from ddim_lightning.engine import InversionEngine
from ddim_lightning.engine_loading import load_engine
from ddim_lightning.job import ClipJob, make_clip_seed
from ddim_lightning.models.loading import Components, load_text_encoder, read_limits
from ddim_lightning.models.vae import encode_video
from ddim_lightning.options import check_options
from ddim_lightning.runtime.compile_cache import save_compiled
from ddim_lightning.specs import PartSpec, describe_part, make_part
from ddim_lightning.training import Training, compute_loss, make_optimizer
from ddim_lightning.types import BadClip, Clip, ClipResult, Progress, VideoLimits

_log = logging.getLogger(__name__)


class DDIMInversionModule(LightningModule):
    """DDIM inversion, reconstruction and prompted editing of videos with CogVideoX.

    Weights load straight to the Trainer's device in `configure_model`, from safetensors, frozen. They are not
    submodules: Lightning neither moves them after a run nor writes them into checkpoints.

    Args:
        model: ``"tiny"`` (the bundled model), a folder in diffusers' layout, or a hub id such as
            ``"zai-org/CogVideoX-5b"``.
        num_inference_steps: Steps of the inversion and of each way back, >= 1.
        guidance_scale: Classifier-free guidance of the edits, >= 0; 1 turns it off. The default does best on the
            tiny model; released CogVideoX is sampled at 6.
        inverter: The way up: an `Inverter`, a class name of `ddim_lightning.diffusion.inverters`, the class path of
            your own, or ``{class_path, init_args}``.
        editor: How a new prompt meets the trajectory: likewise, an `Editor` of `ddim_lightning.diffusion.editors`.
        inversion_prompt: The text of the inversion and the reconstruction; ``None`` takes each clip's source prompt.
        timestep_spacing: ``trailing``, as CogVideoX is published, or ``angle``: even in angles; see `make_step_table`.
        zero_snr: Whether inversions reach the first level of the table, pure noise; without, one step fewer is taken.
        preset: ``exact``, or ``fast``: the editor evaluates only some of its steps, see `make_fast`. The inversion and
            the reconstruction stay exact.
        reconstruct: Also reconstruct every clip, measure how well, and diagnose the inversion.
        save_trajectory: Put the latents of all levels into the result.
        trajectories: Output folder of a former run with ``save_trajectory``: a clip whose trajectory lies there is not
            inverted again. The trajectory must be of the same clip, model, schedule, inverter and prompt.
        share_pass: Make all edits of a clip in one network pass a step, with the source's row evaluated once. Results
            then depend, within rounding, on how many prompts a clip has.
        attention: ``auto``, ``sdpa``, ``xformers``, or the dotted path of a function of your own.
        dtype: ``auto`` (bfloat16 on an accelerator, float32 on a CPU), ``bfloat16``, ``float16`` or ``float32``.
        precision: Of the large products in the transformer's blocks, while edits are made: ``none``, as loaded;
            ``int8``, weights in 8 bits; or ``fp8``, weights and activations in 8 bits, on a CUDA device of compute
            capability 8.9 or more. The exact weights stay in memory beside those in 8 bits.
        quantize_inversion: Make inversions and reconstructions in that precision, too.
        compile: Compile the transformer's blocks: ``True``, or a mode of `torch.compile`.
        compile_vae: Compile the VAE, too; worth it for many clips of one size.
        compile_cache: Folder that keeps compiled graphs: another machine of the same kind starts warm with it (but for
            C++, which a CPU compiles again). Its files hold code that will run: take only your own.
        channels_last: Store the VAE's convolution weights with their channels last; ``None``: on a GPU.
        runtime: Folder that ``ddim-lightning export`` wrote: its artefacts stand in for the network. They must be of
            the same model, dtype and size, and hold the row layouts of this editor and guidance.
        memory: What stays on the device: ``exact``, everything but the text encoder; ``staged``, the VAE or the
            transformer, whichever works; ``low_memory``, of the transformer two blocks at a time. The rest waits in
            host memory; results are the same bytes.
        vae_tiling: Encode and decode overlapping tiles of the frame, one at a time: least memory, but two fifths more
            work, blended seams and norms that see a tile alone. No memory preset does so by itself.
        embeddings: Folder that keeps prompt embeddings from run to run; under known prompts no text encoder is loaded.
            They are found by the content of the text encoder's files, so that any number of models share a folder.
        require_rotary: Refuse models without rotary position embeddings (CogVideoX-2B).
        on_error: ``skip`` records a clip that fails and goes on, ``raise`` stops.
        seed: The run's seed; every clip derives its own from it and its id.
        training: What trains under `Trainer.fit`, a `Training` or its fields; ``None`` keeps everything frozen.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(
        self,
        model: str = "tiny",
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        inverter: Inverter | PartSpec | None = None,
        editor: Editor | PartSpec | None = None,
        inversion_prompt: str | None = "",
        timestep_spacing: Literal["trailing", "angle"] = "trailing",
        zero_snr: bool = True,
        preset: Literal["exact", "fast"] = "exact",
        reconstruct: bool = True,
        save_trajectory: bool = False,
        trajectories: str | None = None,
        share_pass: bool = False,
        attention: str = "auto",
        dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
        precision: Literal["none", "int8", "fp8"] = "none",
        quantize_inversion: bool = False,
        compile: bool | str = False,  # noqa: A002
        compile_vae: bool = False,
        compile_cache: str | None = None,
        channels_last: bool | None = None,
        runtime: str | None = None,
        memory: Literal["exact", "staged", "low_memory"] = "exact",
        vae_tiling: bool = False,
        embeddings: str | None = None,
        require_rotary: bool = True,
        on_error: Literal["skip", "raise"] = "skip",
        seed: int = 0,
        training: Training | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        inverters, editors = "ddim_lightning.diffusion.inverters", "ddim_lightning.diffusion.editors"
        inverter, editor = UniInv() if inverter is None else inverter, InversionFree() if editor is None else editor
        self.inverter = make_part(inverter, Inverter, inverters, "inverter")  # type: ignore[type-abstract]
        made = make_part(editor, Editor, editors, "editor")  # type: ignore[type-abstract]
        self.editor = make_fast(made) if preset == "fast" else made
        self.model = model
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.inversion_prompt = inversion_prompt
        self.reconstruct = reconstruct
        self.save_trajectory = save_trajectory
        self.trajectories = trajectories
        self.share_pass = share_pass
        self.dtype_name = dtype
        self.compile_cache = compile_cache
        self.memory = memory
        self.require_rotary = require_rotary
        self.on_error = on_error
        self.seed = seed
        self.training_options = Training(**training) if isinstance(training, Mapping) else training
        # Objects other than plain values in the hyperparameters would break loading with weights_only.
        self.settings: dict[str, Any] = {
            "model": model,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "inverter": describe_part(self.inverter),
            "editor": describe_part(self.editor),
            "inversion_prompt": inversion_prompt,
            "timestep_spacing": timestep_spacing,
            "zero_snr": zero_snr,
            "preset": preset,
            "reconstruct": reconstruct,
            "save_trajectory": save_trajectory,
            "trajectories": trajectories,
            "share_pass": share_pass,
            "attention": attention,
            "dtype": dtype,
            "precision": precision,
            "quantize_inversion": quantize_inversion,
            "compile": compile,
            "compile_vae": compile_vae,
            "compile_cache": compile_cache,
            "channels_last": channels_last,
            "runtime": runtime,
            "memory": memory,
            "vae_tiling": vae_tiling,
            "embeddings": embeddings,
            "require_rotary": require_rotary,
            "on_error": on_error,
            "seed": seed,
            "training": None if self.training_options is None else asdict(self.training_options),
        }
        check_options(self.settings)
        self.save_hyperparameters(self.settings)
        self.progress_listeners: list[Callable[[Progress], None]] = []
        self._engine: InversionEngine | None = None

    @property
    def video_limits(self) -> VideoLimits:
        """What the model accepts, read from its configs; needs no weights."""
        return read_limits(self.model, require_rotary=self.require_rotary)

    @property
    def engine(self) -> InversionEngine:
        """The loaded model and its acts; loads it when that has not happened yet."""
        if self._engine is None:
            self.load(self.device)
        assert self._engine is not None
        # Lightning moves what trains, and only that, to the CPU after a run.
        self._engine.move(self._engine.device)
        return self._engine

    @property
    def components(self) -> Components:
        """The loaded diffusers and transformers objects."""
        return self.engine.components

    @property
    def pipeline(self) -> CogVideoXPipeline:
        """The components as a pipeline of diffusers."""
        if self.memory != "exact":
            raise ValueError(f"memory: must be exact for a pipeline, whose weights stay in place, got {self.memory!r}")
        if (runtime := self.settings["runtime"]) is not None:
            rule = "must be unset for a pipeline, since its transformer stays on the host"
            raise ValueError(f"runtime: {rule}, got {runtime!r}")
        parts = self.components
        self._keep_text_encoder()
        return CogVideoXPipeline(parts.tokenizer, parts.text_encoder, parts.vae, parts.transformer, parts.scheduler)

    @torch.inference_mode(False)  # weights that were made under inference mode could never train
    def load(self, device: torch.device) -> None:
        """Load the model onto a device; the Trainer does it by itself, through `configure_model`."""
        self._engine = load_engine(self.settings, self.inverter, self.editor, device)
        if self.training_options is not None:
            # Only what trains becomes a submodule, and with it a part of checkpoints and of what Lightning moves.
            for name in self.training_options.parts:
                part = getattr(self._engine.components, name).requires_grad_(True)
                # In bfloat16 most updates of an optimiser would round away; precision="bf16-mixed" computes in it.
                self.register_module(name, part.float() if self.dtype_name == "auto" else part)

    def configure_model(self) -> None:
        """Load the model onto the Trainer's device, once.

        Lightning calls this without a Trainer when it loads a checkpoint; then only weights that train are needed.
        """
        device = self.device if self._trainer is None else self.trainer.strategy.root_device
        if self._engine is not None:
            self._engine.move(device)
        elif self._trainer is not None or self.training_options is not None:
            self.load(device)

    def on_predict_start(self) -> None:
        """Encode every prompt of the run once and release the text encoder."""
        list_prompts = getattr(getattr(self.trainer, "datamodule", None), "all_prompts", None)
        if list_prompts is None:
            self._keep_text_encoder()
            rank_zero_info("The data module lists no prompts (all_prompts): the text encoder stays in memory.")
            return
        self.encode_prompts([self.inversion_prompt or "", "", *list_prompts()])
        if "text_encoder" not in self._get_trained_parts():
            self.components.text_encoder = None
            self.engine.prompts.release()

    def on_predict_end(self) -> None:
        """Keep what was compiled."""
        if self.compile_cache is not None:
            save_compiled(Path(self.compile_cache).expanduser())

    def on_fit_end(self) -> None:
        """Forget the embeddings of a text encoder that has changed."""
        self.engine.prompts.forget()

    def encode_prompts(self, prompts: Sequence[str]) -> None:
        """Encode prompts, each once; loads the text encoder where it is needed and was released."""
        if not all(prompt in self.engine.prompts for prompt in prompts):
            self._keep_text_encoder()
        for prompt in prompts:
            self.engine.prompts(prompt)

    def predict_step(self, batch: Clip | BadClip, batch_idx: int) -> ClipResult:
        """Do the whole job on one clip.

        Args:
            batch: The clip; `VideoDataModule` makes them, and any other data module may.
            batch_idx: Not used.

        Returns:
            The result, on the CPU; with ``on_error="skip"`` a failed clip has status ``skipped`` and a reason.
        """
        if isinstance(batch, BadClip):
            if self.on_error == "raise":
                raise ValueError(batch.reason)
            return self._skip(batch, batch.reason)
        seed = make_clip_seed(self.seed, batch.id) if batch.seed is None else batch.seed
        try:
            job = ClipJob(
                self.engine,
                batch,
                seed=seed,
                guidance_scale=self.guidance_scale,
                reconstruct=self.reconstruct,
                save_trajectory=self.save_trajectory,
                trajectories=None if self.trajectories is None else Path(self.trajectories),
                share_pass=self.share_pass,
                on_progress=self._report,
            )
            result = job.run()
        except Exception as error:
            if self.on_error == "raise":
                raise
            _log.debug("clip %s was skipped", batch.id, exc_info=True)
            return self._skip(batch, f"{type(error).__name__}: {' '.join(str(error).split())}", seed)
        result.settings = self._get_settings()
        return result

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the velocity loss of a batch.

        Args:
            batch: ``prompts``, a caption per clip, and either ``latents`` (b, f, c, h, w), clean and scaled, or
                ``frames`` (b, f, c, h, w) uint8, which the frozen VAE encodes.
            batch_idx: Not used.
        """
        # The draw depends on the step and the rank alone: a resumed run draws what an unbroken one would.
        part = batch_idx % self.trainer.accumulate_grad_batches
        draw = f"{self.global_step}/{part}/{self.global_rank}"
        return self._compute_loss(batch, draw, self._get_training().caption_dropout, "train/loss")

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the velocity loss of a batch at levels and noise that are the same every time."""
        self._compute_loss(batch, f"validation/{batch_idx}/{self.global_rank}", 0.0, "val/loss")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser of what trains, with linear warm-up and one cosine over the whole training."""
        options = {k: v for k, v in asdict(self._get_training()).items() if k not in ("parts", "caption_dropout")}
        num_steps = int(self.trainer.estimated_stepping_batches)
        return cast(OptimizerLRScheduler, make_optimizer(self.named_parameters(), num_steps, **options))

    def _get_training(self) -> Training:
        if self.training_options is None:
            raise ValueError("training: must say what trains before fit, got None")
        return self.training_options

    def _get_trained_parts(self) -> tuple[str, ...]:
        return () if self.training_options is None else self.training_options.parts

    def _get_settings(self) -> dict[str, Any]:
        """The settings with what ``auto`` came to."""
        transformer = self.components.transformer
        return self.settings | {
            "dtype": str(transformer.dtype).removeprefix("torch."),
            "device": self.engine.device.type,
        }

    def _compute_loss(self, batch: Mapping[str, Any], draw: str, caption_dropout: float, name: str) -> Tensor:
        self._keep_text_encoder()
        latents = batch["latents"].float() if "latents" in batch else self._encode_batch(batch["frames"])
        generator = torch.Generator().manual_seed(make_clip_seed(self.seed, draw))
        loss = compute_loss(self.engine, latents, batch["prompts"], generator, caption_dropout)
        self.log(name, loss, prog_bar=True, batch_size=len(latents), sync_dist=True)
        return loss

    @torch.no_grad()
    def _encode_batch(self, frames: Tensor) -> Tensor:
        return encode_video(self.components.vae, frames)

    def _skip(self, clip: Clip | BadClip, reason: str, seed: int = 0) -> ClipResult:
        return ClipResult(clip, "skipped", reason, seed=seed, settings=self._get_settings())

    def _report(self, progress: Progress) -> None:
        for listener in self.progress_listeners:
            listener(progress)

    @torch.inference_mode(False)
    def _keep_text_encoder(self) -> None:
        """Have a text encoder, loading it again if it was released."""
        parts, prompts = self.engine.components, self.engine.prompts
        if parts.text_encoder is None:
            self.engine.bring(None)
            parts.text_encoder = load_text_encoder(self.model, device=self.engine.device, dtype=parts.transformer.dtype)
        prompts.text_encoder = parts.text_encoder

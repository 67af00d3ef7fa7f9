"""The Lightning face loads the model, and does the whole job on a clip in `predict_step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.engine.at_hand import PartsAtHand
from ddim_lightning.engine.batch_forms import is_one_clip, split_batch
from ddim_lightning.engine.build import LoadedModel, build_engine
from ddim_lightning.engine.clip_runner import ClipRunner
from ddim_lightning.engine.config import (
    Lora,
    Outputs,
    Runtime,
    Schedule,
    Source,
    Training,
    check_guidance_scale,
    check_options,
    make_loras,
    make_options,
)
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.fast import make_fast
from ddim_lightning.engine.measuring import make_measurer
from ddim_lightning.engine.parts import PartSpec, describe_part, make_part
from ddim_lightning.engine.precision import describe_precision, take_precision
from ddim_lightning.engine.recommended import take_recommended
from ddim_lightning.limits import VideoLimits
from ddim_lightning.metrics.measurer import Measurer
from ddim_lightning.models.checkpoint import read_checkpoint, read_limits
from ddim_lightning.models.schedulers import describe_scheduler
from ddim_lightning.runtime.compile_cache import save_compiled
from ddim_lightning.training_module import TrainingModule
from ddim_lightning.types import ClipResult, FindResult, Progress


class DDIMInversionModule(PartsAtHand, TrainingModule):
    """A `DDIMInversionModule` inverts, reconstructs and edits videos with CogVideoX under a Trainer.

    Weights load straight to the Trainer's device in `configure_model`, from safetensors, frozen. They are not
    submodules: Lightning neither moves them after a run nor writes them into checkpoints. Without a Trainer, call
    `load`.

    Args:
        model: ``tiny`` (the bundled model), a folder in diffusers' layout, or a hub id such as
            ``zai-org/CogVideoX-5b``.
        source: Where the model's weights come from, beside its name; see `Source`.
        lora: LoRA files to add to the transformer's weights: ``FILE``, ``FILE:SCALE`` or ``{file, scale}`` each. One
            that was trained for an editor acts in edits alone, and recommends editor, steps and guidance scale.
        guidance_scale: Classifier-free guidance scale of the edits, >= 0; 1 turns guidance off. ``None`` takes what is
            recommended, here and below, for such an adapter or else for the model.
        inversion_prompt: The prompt of the inversion and the reconstruction; ``None`` takes each clip's source prompt.
        inverter: The inversion method: an `Inverter`, a class name of `ddim_lightning.diffusion.inverters`, the class
            path of your own, or ``{class_path, init_args}``.
        editor: The editing method: likewise, an `Editor` of `ddim_lightning.diffusion.editors`.
        schedule: Which noise levels are passed through; see `Schedule`.
        runtime: How the model runs; see `Runtime`.
        outputs: What is made of every clip beside its edits; see `Outputs`.
        training: What trains under `Trainer.fit`; ``None`` keeps everything frozen.
        seed: The run's seed; every clip derives its own from it and its id.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(
        self,
        model: str | PathLike[str] = "tiny",
        *,
        source: Source = Source(),  # noqa: B008, frozen
        lora: Sequence[Lora | Mapping[str, Any] | str] | str = (),
        guidance_scale: float | None = None,
        inversion_prompt: str | None = "",
        inverter: Inverter | PartSpec | None = None,
        editor: Editor | PartSpec | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008, frozen
        runtime: Runtime = Runtime(),  # noqa: B008, frozen
        outputs: Outputs = Outputs(),  # noqa: B008, frozen
        training: Training | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(model, str | PathLike):
            rule = "must be a name or a folder; make a module of a loaded pipeline with from_pipeline"
            raise TypeError(f"model: {rule}, got a {type(model).__name__}")
        self.model = model = str(model)
        self.loras = make_loras(lora)
        self.inversion_prompt = inversion_prompt
        self.seed = seed
        # Checkpoints hold them as plain mappings.
        self.source = make_options(Source, source)
        self.schedule = make_options(Schedule, schedule)
        self.runtime = make_options(Runtime, runtime)
        self.outputs = make_options(Outputs, outputs)
        self.training_options = None if training is None else make_options(Training, training)
        check_options(self.runtime, self.training_options, self.loras)
        given = {"guidance_scale": guidance_scale, "inverter": inverter, "editor": editor}
        given["num_inference_steps"] = self.schedule.num_inference_steps
        taken, self._recommended = take_recommended(given, model, self.source.subfolder, self.loras)
        self.schedule = replace(self.schedule, num_inference_steps=taken["num_inference_steps"])
        self.guidance_scale = float(taken["guidance_scale"])
        check_guidance_scale(self.guidance_scale)
        inverters, editors = "ddim_lightning.diffusion.inverters", "ddim_lightning.diffusion.editors"
        self.inverter = make_part(taken["inverter"], Inverter, inverters, "inverter")
        made = make_part(taken["editor"], Editor, editors, "editor")
        self.editor = made
        if self.schedule.fast:
            self.editor, step_cache = make_fast(made, self.runtime.step_cache)
            self.runtime = replace(self.runtime, step_cache=step_cache)
        self.objectives = self.make_objectives()
        self.check_optimizer()
        # Objects other than plain values would break the loading of checkpoints with weights_only.
        self.save_hyperparameters(
            {
                "model": model,
                "source": asdict(self.source),
                "lora": [asdict(one) for one in self.loras],
                "guidance_scale": self.guidance_scale,
                "inversion_prompt": inversion_prompt,
                "inverter": describe_part(self.inverter),
                "editor": describe_part(made),
                "schedule": asdict(self.schedule),
                "runtime": asdict(self.runtime),
                "outputs": asdict(self.outputs),
                "training": None if self.training_options is None else asdict(self.training_options),
                "seed": seed,
            }
        )
        self.progress_listeners: list[Callable[[Progress], None]] = []
        self.find_results: list[FindResult] = []
        """Where results go that are kept; a clip that all of them find is not done again."""
        self._engine: InversionEngine | None = None
        self._measurer: Measurer | None = None
        self._given: LoadedModel | None = None

    @property
    def video_limits(self) -> VideoLimits:
        """Which videos the model accepts, read from its configs; needs no weights."""
        if self._given is not None:
            return self._given.parts.limits
        if self._engine is not None:
            return self._engine.components.limits
        return read_limits(self.model, self.source, **self.runtime.requires)

    @property
    def ranks_per_clip(self) -> int:
        """How many processes work on a clip together; data modules give all of them the same clips."""
        return self.runtime.ranks_per_clip

    @property
    def engine(self) -> InversionEngine:
        """The loaded model and what it does.

        Raises:
            RuntimeError: The model is not loaded yet, or Lightning moved what trained to the host after a fit.
        """
        if self._engine is None:
            raise RuntimeError("engine: the model is not loaded; call load(device) first, or run it under a Trainer")
        trained = next(self.parameters(), None)
        if trained is not None and trained.device != self._engine.prompts.device:
            raise RuntimeError("engine: what trained is elsewhere since Trainer.fit ended; call load(device) again")
        self._engine = self._follow_pipeline(self._engine)
        return self._engine

    def load(self, device: torch.device | str, *, token: str | None = None) -> None:
        """Load the model onto a device, or move it there where it is loaded; a Trainer does it by itself.

        Args:
            device: Where the model works. Call it again after `Trainer.fit` on a GPU: Lightning moved what trained.
            token: Of the hub; ``None`` takes what ``HF_TOKEN`` or a login says. It is kept nowhere.
        """
        self._load(device, token)

    @torch.inference_mode(False)  # weights that were made under inference mode could never train
    def _load(self, device: torch.device | str, token: str | None = None, first_prompts: Sequence[object] = ()) -> None:
        device = torch.empty(0, device=device).device  # with its index
        if self._measurer is None or self._measurer.device != device:
            self._measurer = make_measurer(self.outputs, device)
        if self._engine is not None:
            if token is not None:
                raise ValueError("token: must be unset for a model that is loaded already, got one")
            self._engine.to(device)
            return
        if self._trained_parts and self.video_limits.needs_image:
            raise ValueError("training: needs a text-to-video model, got an image-to-video model")
        self.check_lora(token)
        keeps_dtype = bool(self._trained_parts) or self._given is not None
        with torch.device("cpu"):  # a Trainer makes the GPU the default, where the host cannot read tables
            self._engine = build_engine(
                self._given or self.model,
                self.inverter,
                self.editor,
                device,
                schedule=self.schedule,
                runtime=take_precision(self.runtime, self._get_precision(), keeps_dtype=keeps_dtype),
                source=self.source,
                lora=self.loras,
                inversion_prompt=self.inversion_prompt,
                token=token,
                first_prompts=first_prompts,
            )
        self._place_trained(self._engine, full_precision=self.runtime.dtype == "auto")

    @override
    def read_config(self, token: str | None = None) -> Mapping[str, Any]:
        """Read the config of the transformer; needs no weights."""
        if self._given is not None:
            return dict(self._given.parts.transformer.config)
        return read_checkpoint(self.model, self.source, **self.runtime.requires, token=token).configs["transformer"]

    @override
    def configure_model(self) -> None:
        """Load the model onto the Trainer's device, once; before it the prompts of a run are encoded.

        Lightning calls this without a Trainer when it loads a checkpoint; then only weights that train are needed.
        """
        if self._trainer is not None:
            # A text encoder that trains is not what it was loaded as.
            are_known = self.trainer.predicting and "text_encoder" not in self._trained_parts
            first_prompts = self._list_prompts() if are_known else None
            self._load(self.trainer.strategy.root_device, first_prompts=first_prompts or ())
            self._shard_trained()
            dtype, trains = self.components.transformer.dtype, bool(self._trained_parts)
            if said := describe_precision(self._get_precision(), dtype, trains=trains):
                rank_zero_info(said)
        elif self.training_options is not None:
            self.load(self.device)

    @override
    def on_predict_start(self) -> None:
        """Encode every prompt of the run, where that was not done before the model was loaded."""
        prompts, texts = self.engine.prompts, self._list_prompts()
        if texts is not None:
            prompts.prepare_all(texts)
            if "text_encoder" not in self._trained_parts:
                self.release_text_encoder()
        elif prompts.can_encode:
            prompts.load()
            rank_zero_info("The data module lists no prompts (all_prompts): the text encoder stays in memory.")

    @override
    def on_predict_end(self) -> None:
        """Keep what was compiled."""
        if self.runtime.compile_cache is not None:
            save_compiled(Path(self.runtime.compile_cache).expanduser())

    def encode_prompts(self, prompts: Sequence[str]) -> None:
        """Encode prompts, each once; loads the text encoder where it is needed."""
        for prompt in prompts:
            self.engine.prompts.prepare(prompt)

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> ClipResult | list[ClipResult]:
        """Do the whole job on the clips of a batch, one after the other.

        A clip's result is the same bytes in whatever batch it comes.

        Args:
            batch: A `Clip`, as `VideoDataModule` makes them; a mapping with ``video`` (or ``frames``), ``prompts`` and
                so on; a tensor of frames; a pair (tensor, prompts); such a mapping or tensor with a batch axis; or a
                list of these. The documentation says what a mapping may hold ("Your own data module").
            batch_idx: With the rank, the first of those that share a clip, and ``dataloader_idx`` it names clips that
                bring no id: ``rank-0-batch-7-clip-1``.
            dataloader_idx: Position of the data loader, where there are several.

        Returns:
            The result, on the CPU; of a list or a batch axis, whatever its length, a list of them in order. With
            ``on_error="skip"`` a failed clip has status ``skipped`` and a reason, and so has what is no clip. A clip
            that a writer finds finished has status ``finished``.

        Raises:
            TypeError: With ``on_error="raise"``, a batch that is no clip, or has a field of a wrong type; otherwise
                whatever a clip fails with.
        """
        loader = f"loader-{dataloader_idx}-" if dataloader_idx else ""
        first = self.global_rank - self.global_rank % self.ranks_per_clip
        items = split_batch(batch, f"rank-{first}-{loader}batch-{batch_idx}")
        runner = ClipRunner(
            self.engine,
            self.describe(),
            seed=self.seed,
            guidance_scale=self.guidance_scale,
            outputs=self.outputs,
            batch_prompts=self.runtime.batch_prompts,
            on_progress=self._report,
            measurer=self._measurer,
            find_results=self.find_results,
        )
        results = [runner.run(item) for item in items]
        return results[0] if is_one_clip(batch) else results

    def describe(self) -> dict[str, Any]:
        """Return the hyperparameters with what was taken for ``None`` and ``auto``, from where, and what acts."""
        settings = {name: self.hparams[name] for name in self.hparams}
        dtype = str(self.components.transformer.dtype).removeprefix("torch.")
        taken = {"editor": describe_part(self.editor), "runtime": settings["runtime"] | {"dtype": dtype}}
        acts = {"scheduler": describe_scheduler(self.scheduler), "device": self.engine.device.type}
        adapter = {} if self.engine.adapter is None else {"adapter": self.engine.adapter.describe()}
        return settings | taken | acts | adapter | {"recommended": self._recommended}

    def _list_prompts(self) -> list[object] | None:
        """List the prompts of a run; ``None`` where its data module does not say them."""
        list_prompts = getattr(getattr(self.trainer, "datamodule", None), "all_prompts", None)
        return None if list_prompts is None else ["", self.inversion_prompt, *list_prompts()]

    def _get_precision(self) -> str:
        return "32-true" if self._trainer is None else str(self._trainer.precision)

    def _report(self, progress: Progress) -> None:
        for listener in self.progress_listeners:
            listener(progress)

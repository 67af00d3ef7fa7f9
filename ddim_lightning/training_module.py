"""The half of the Lightning face that trains: what trains, what becomes small, and the optimizer."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import override

from ddim_lightning.diffusion.objectives import Objective, Samples
from ddim_lightning.engine.clip_job import make_clip_seed
from ddim_lightning.engine.config import Training
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.parts import make_part
from ddim_lightning.engine.training import (
    check_optimizer,
    compute_by_level,
    compute_objectives,
    make_optimizer,
    make_samples,
)
from ddim_lightning.models.lora_layers import add_lora, check_lora
from ddim_lightning.network.source_mark import add_mark
from ddim_lightning.runtime.processes import share_work
from ddim_lightning.runtime.sharding import shard_part

_OBJECTIVES = "ddim_lightning.diffusion.objectives"


class TrainingModule(LightningModule):
    """A `TrainingModule` trains parts of a loaded model toward objectives."""

    training_options: Training | None
    objectives: Sequence[Objective]
    seed: int
    _engine: InversionEngine | None

    @property
    @abstractmethod
    def engine(self) -> InversionEngine:
        """The loaded model and what it does."""

    def make_objectives(self) -> list[Objective]:
        """Make what `Training.objectives` names; nothing where nothing trains."""
        named = () if self.training_options is None else self.training_options.objectives
        kind: Any = Objective
        return [make_part(one, kind, _OBJECTIVES, "training.objectives") for one in named]

    def check_optimizer(self) -> None:
        """Raise a ValueError where the optimizer is not installed, or does not take its settings."""
        if self.training_options is not None:
            check_optimizer(self.training_options)

    @abstractmethod
    def read_config(self, token: str | None = None) -> Mapping[str, Any]:
        """Read the config of the transformer; needs no weights."""

    def check_lora(self, token: str | None = None) -> None:
        """Raise a ValueError where a LoRA that is to train does not fit the transformer, before weights are read."""
        if "lora" in self._trained_parts:
            options = self._get_training()
            check_lora(self.read_config(token), rank=options.rank, targets=options.targets)

    @override
    def configure_callbacks(self) -> list[Callback]:
        """Check the LoRA; Lightning asks for callbacks, of which there are none, before it has data prepared."""
        self.check_lora()
        return []

    @abstractmethod
    def release_text_encoder(self) -> None:
        """Let go of the text encoder until it is needed again."""

    @override
    def on_fit_start(self) -> None:
        """Encode what the prompt cache lacks of the data module's prompts, and let go of the text encoder."""
        prompts, list_prompts = self.engine.prompts, getattr(self.trainer.datamodule, "all_prompts", None)  # type: ignore[attr-defined]
        if prompts.cache is None or list_prompts is None:
            return
        texts = ["", *list_prompts()]

        def encode(position: int) -> None:
            if not prompts.is_known(texts[position]):
                prompts.read_batch([texts[position]])

        share_work(len(texts), encode)
        self.release_text_encoder()

    @override
    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch, the weighted sum of the objectives.

        Args:
            batch: Clips or pairs, see `make_samples`; frames are encoded by the frozen VAE.
            batch_idx: Which of the batches that make a step.
        """
        # The draw depends on the batch's place alone: a resumed run draws what an unbroken one would, and one process
        # that accumulates k batches what k processes draw.
        draw = f"{self.global_step}/{self._find_place(batch_idx % self.trainer.accumulate_grad_batches)}/0"
        samples = make_samples(batch, self._encode_batch)
        return self._compute_loss(samples, draw, self._get_training().caption_dropout, "train/loss")

    @override
    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the loss of a batch at levels and noise that are the same every time.

        Of the first batch the loss by noise level, too, at the price of five more evaluations; every process has one.
        """
        samples, draw = make_samples(batch, self._encode_batch), f"validation/{self._find_place(batch_idx)}/0"
        self._compute_loss(samples, draw, 0.0, "val/loss")
        if batch_idx == 0:
            losses = compute_by_level(self.engine, self.objectives, samples, make_clip_seed(self.seed, draw))
            named = {f"val/loss/{part}": loss for part, loss in losses.items()}
            self.log_dict(named, batch_size=len(samples.latents), sync_dist=True)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer of what trains, with linear warm-up and one cosine over the whole training."""
        num_steps = int(self.trainer.estimated_stepping_batches)
        optimizer = make_optimizer(self.named_parameters(), num_steps, self._get_training())
        return cast(OptimizerLRScheduler, optimizer)

    @override
    def on_fit_end(self) -> None:
        """Drop the embeddings of a text encoder that has changed."""
        self.engine.prompts.clear_cache()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the module with what trains of it; frozen weights, which are most of it, share their memory.

        Weight averaging makes such a copy.
        """
        if self._engine is not None and self._trained_parts:
            loaded = self._engine.components
            for part in filter(None, (loaded.transformer, loaded.vae, self._engine.prompts.text_encoder)):
                frozen = (weight for weight in part.parameters() if not weight.requires_grad)
                memo |= {id(weight): nn.Parameter(weight.data, requires_grad=False) for weight in frozen}
        memo[id(self)] = copied = self.__class__.__new__(self.__class__)
        cast(Any, copied).__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    @property
    def _trained_parts(self) -> tuple[str, ...]:
        return () if self.training_options is None else self.training_options.parts

    def _get_training(self) -> Training:
        if self.training_options is None:
            raise ValueError("training: must say what trains before fit, got None")
        return self.training_options

    def _place_trained(self, engine: InversionEngine, *, full_precision: bool) -> None:
        """Make submodules of the parts that train: so they are in checkpoints, and are what Lightning moves.

        Args:
            engine: The loaded model.
            full_precision: Make them float32, for in bfloat16 most updates of an optimizer would round away;
                ``precision="bf16-mixed"`` computes in it.
        """
        for name in self._trained_parts:
            # The properties of these names give the same.
            self._modules[name] = self._take_part(name, engine, full_precision)
        if self._trained_parts and self._get_training().gradient_checkpointing:
            engine.components.transformer.enable_gradient_checkpointing()

    def _shard_trained(self) -> None:
        """Spread the weights of what trains over the processes of a `ModelParallelStrategy` (FSDP2)."""
        mesh = self.device_mesh
        if mesh is None or not self._trained_parts:
            return
        if (size := mesh["tensor_parallel"].size()) != 1:
            raise ValueError(f"tensor_parallel_size: must be 1, blocks are sharded over all processes, got {size}")
        dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        for name in self._trained_parts:
            whole = self.engine.components.transformer if name == "lora" else self._modules[name]
            assert whole is not None
            shard_part(whole, mesh["data_parallel"], dtype)

    def _take_part(self, name: str, engine: InversionEngine, full_precision: bool) -> nn.Module:
        if name != "lora":
            part: nn.Module = engine.prompts.load() if name == "text_encoder" else engine.components.transformer
            return (part.float() if full_precision else part).requires_grad_(True)
        transformer, options = engine.components.transformer, self._get_training()
        layers = add_lora(transformer, rank=options.rank, alpha=options.alpha, targets=options.targets, seed=self.seed)
        if any(objective.reads_sources for objective in self.objectives):
            layers.place("source_mark", add_mark(transformer))
        return layers.float() if full_precision else layers

    def _find_place(self, batch_idx: int) -> int:
        """Return the place of a batch of this process among those of all processes, which take turns."""
        return batch_idx * self.trainer.world_size + self.global_rank

    def _compute_loss(self, samples: Samples, draw: str, caption_dropout: float, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(make_clip_seed(self.seed, draw))
        loss, parts = compute_objectives(self.engine, self.objectives, samples, generator, caption_dropout)
        self.log(name, loss, prog_bar=True, batch_size=len(samples.latents), sync_dist=True)
        if len(parts) > 1:
            named = {f"{name}/{one}": value for one, value in parts.items()}
            self.log_dict(named, batch_size=len(samples.latents), sync_dist=True)
        return loss

    @torch.no_grad()
    def _encode_batch(self, frames: Tensor) -> Tensor:
        return self.engine.encode(frames)

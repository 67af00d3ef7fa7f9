"""The parts of a loaded model are at hand as attributes, under their names in diffusers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMInverseScheduler,
)
from torch import nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ddim_lightning.engine.build import replace_scheduler
from ddim_lightning.engine.config import Runtime, Schedule
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.models.loading import Components

_WEIGHTS = ("transformer", "vae", "text_encoder")


class PartsAtHand:
    """A `PartsAtHand` is a module that hands out the parts of its loaded model; before that they raise RuntimeError."""

    runtime: Runtime
    schedule: Schedule
    _engine: InversionEngine | None

    @property
    @abstractmethod
    def engine(self) -> InversionEngine:
        """The loaded model and what it does."""

    @property
    def components(self) -> Components:
        """The loaded diffusers objects; the text encoder is `engine.prompts`'."""
        return self.engine.components

    @property
    def transformer(self) -> CogVideoXTransformer3DModel:
        """The loaded transformer."""
        return self.components.transformer

    @property
    def vae(self) -> AutoencoderKLCogVideoX:
        """The loaded VAE."""
        return self.components.vae

    @property
    def text_encoder(self) -> T5EncoderModel:
        """The text encoder; it comes to the device with the first who asks for it, and goes when a run begins."""
        return self.engine.prompts.load()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the text encoder."""
        return self.components.tokenizer

    @property
    def scheduler(self) -> CogVideoXDDIMScheduler:
        """The sampling scheduler; one that is assigned brings its noise levels, in both directions."""
        return self.components.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._engine = replace_scheduler(self.engine, scheduler, self.schedule)

    @property
    def inverse_scheduler(self) -> DDIMInverseScheduler:
        """The scheduler of inversions, on the noise levels of `scheduler`."""
        return self.components.inverse_scheduler

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse other weights under the name of a part: the loaded engine would go on with those it has."""
        if name in _WEIGHTS and isinstance(value, nn.Module):
            raise AttributeError(f"{name}: cannot be replaced in a module; make one with from_components({name}=...)")
        super().__setattr__(name, value)

    def to_pipeline(self) -> CogVideoXPipeline:
        """Make a pipeline of diffusers of the loaded parts.

        Raises:
            ValueError: An option of the runtime that does not keep all of the model on the device.
        """
        if self.runtime.offload != "none":
            raise ValueError(f"offload: must be none for a pipeline, which moves none, got {self.runtime.offload!r}")
        if self.runtime.exported is not None:
            raise ValueError(f"exported: must be unset for a pipeline, which runs none, got {self.runtime.exported!r}")
        return CogVideoXPipeline(self.tokenizer, self.text_encoder, self.vae, self.transformer, self.scheduler)

    @property
    def pipeline(self) -> CogVideoXPipeline:
        """What `to_pipeline` makes."""
        return self.to_pipeline()

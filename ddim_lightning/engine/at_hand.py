"""A module is made of loaded parts, and has them at hand as attributes, under their names in diffusers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self, cast

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMInverseScheduler,
    DiffusionPipeline,
)
from torch import nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ddim_lightning.engine.build import LoadedModel, replace_scheduler
from ddim_lightning.engine.config import Runtime, Schedule, Source
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.models.loading import Components, adopt_components

_WEIGHTS = ("transformer", "vae", "text_encoder")


class FollowedPipeline:
    """A `FollowedPipeline` is a pipeline of diffusers whose parts may be replaced by whoever holds it.

    Args:
        pipeline: The pipeline, with the parts that a module has loaded.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._known = {name: getattr(pipeline, name) for name in (*_WEIGHTS, "tokenizer", "scheduler")}

    def has_other_scheduler(self) -> bool:
        """Whether its scheduler was replaced.

        Raises:
            ValueError: If another part was replaced, with which the loaded module cannot go on.
        """
        # A part that its owner has let go of is no other part.
        found = {name: getattr(self.pipeline, name) for name in self._known}
        replaced = [name for name, part in found.items() if part is not None and part is not self._known[name]]
        if others := [name for name in replaced if name != "scheduler"]:
            rule = "must stay in the pipeline of a loaded module; make a new module with from_pipeline"
            raise ValueError(f"{others[0]}: {rule}, got another {type(found[others[0]]).__name__}")
        return bool(replaced)

    def put(self, name: str, part: Any) -> None:
        """Put a part of the module into it, which is the known one from now on."""
        setattr(self.pipeline, name, part)
        self._known[name] = part


class PartsAtHand:
    """A `PartsAtHand` is a module that hands out the parts of its loaded model; before that they raise RuntimeError."""

    runtime: Runtime
    schedule: Schedule
    _engine: InversionEngine | None
    _given: LoadedModel | None
    _followed: FollowedPipeline | None = None

    @property
    @abstractmethod
    def engine(self) -> InversionEngine:
        """The loaded model and what it does."""

    @classmethod
    def from_pretrained(
        cls, model: str, *, device: torch.device | str | None = None, token: str | None = None, **options: Any
    ) -> Self:
        """Make a module and load its model at once, for work without a Trainer.

        Args:
            model: As in the constructor.
            device: Where the model works; ``None`` is a GPU where there is one.
            token: Of the hub, for a repository that is not public; ``None`` takes what ``HF_TOKEN`` or a login says. It
                is kept nowhere.
            options: The fields of `Source` (``revision``, ``variant``, ``subfolder``, ...), and the constructor's other
                arguments.

        Raises:
            ValueError: Fields of `Source` beside ``source``.
        """
        fields = {name: options.pop(name) for name in Source.__dataclass_fields__ if name in options}
        if fields and "source" in options:
            raise ValueError(f"source: must be unset beside {', '.join(fields)}, got {options['source']}")
        if fields:
            options["source"] = Source(**fields)
        module = cast(Any, cls)(model, **options)
        module.load(device or ("cuda" if torch.cuda.is_available() else "cpu"), token=token)
        return cast(Self, module)

    @classmethod
    def from_pipeline(cls, pipeline: DiffusionPipeline, **options: Any) -> Self:
        """Make a module of a pipeline that is loaded already; see `from_components`."""
        names = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
        if missing := [name for name in names if getattr(pipeline, name, None) is None]:
            got = f"a {type(pipeline).__name__} without {', '.join(missing)}"
            raise ValueError(f"pipeline: must have {', '.join(names)}, got {got}")
        parts = {name: getattr(pipeline, name) for name in names}
        if "model" in options:
            raise ValueError(f"model: must be unset beside a pipeline, which is the model, got {options['model']!r}")
        module = cls.from_components(**parts, model=pipeline.name_or_path or "loaded", **options)
        module._followed = FollowedPipeline(pipeline)
        return module

    @classmethod
    def from_components(
        cls,
        *,
        transformer: CogVideoXTransformer3DModel,
        vae: AutoencoderKLCogVideoX,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: Any,
        model: str = "loaded",
        **options: Any,
    ) -> Self:
        """Make a module of a model that is loaded already.

        Nothing is loaded or copied: the objects are shared, frozen, and moved to the device that `load` or a Trainer
        names.

        Args:
            transformer: A CogVideoX transformer.
            vae: Its VAE.
            text_encoder: Its T5 encoder.
            tokenizer: The tokenizer of the text encoder.
            scheduler: A ``CogVideoXDDIMScheduler`` or ``CogVideoXDPMScheduler``; its noise levels are the schedule.
            model: A name for records.
            options: The constructor's other arguments.

        Raises:
            ValueError: A model that is not supported, parts that do not fit together, or a ``source``.
        """
        module = cast(Any, cls)(model, **options)
        if module.source != Source():
            raise ValueError(f"source: must be unset for a model that is loaded already, got {module.source}")
        rotary = module.runtime.require_rotary
        parts = adopt_components(transformer, vae, text_encoder, tokenizer, scheduler, require_rotary=rotary)
        module._given = LoadedModel(parts, text_encoder)
        return cast(Self, module)

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
        """The tokenizer of the text encoder; one that was left out raises RuntimeError."""
        if self.components.tokenizer is None:
            raise RuntimeError("tokenizer: the model has none; its prompts come from the prompt_cache")
        return self.components.tokenizer

    @property
    def scheduler(self) -> CogVideoXDDIMScheduler:
        """The sampling scheduler; one that is assigned brings its noise levels, in both directions."""
        return self.components.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._engine = replace_scheduler(self.engine, scheduler, self.schedule)
        if self._followed is not None:
            self._followed.put("scheduler", scheduler)

    @property
    def inverse_scheduler(self) -> DDIMInverseScheduler:
        """The scheduler of inversions, on the noise levels of `scheduler`."""
        return self.components.inverse_scheduler

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse other weights under the name of a part: the loaded engine would go on with those it has."""
        if name in _WEIGHTS and isinstance(value, nn.Module):
            raise AttributeError(f"{name}: cannot be replaced in a module; make one with from_components({name}=...)")
        super().__setattr__(name, value)

    def to_pipeline(self) -> CogVideoXPipeline | CogVideoXImageToVideoPipeline:
        """Make a pipeline of diffusers of the loaded parts, an image-to-video one where the model is such a model.

        Raises:
            ValueError: An option of the runtime that does not keep all of the model on the device.
        """
        self._check_whole()
        kind = CogVideoXImageToVideoPipeline if self.components.limits.needs_image else CogVideoXPipeline
        return kind(self.tokenizer, self.text_encoder, self.vae, self.transformer, self.scheduler)

    def _check_whole(self) -> None:
        """Raise a ValueError for an option of the runtime that does not keep all of the model on the device."""
        if self.runtime.offload != "none":
            raise ValueError(f"offload: must be none for a pipeline, which moves none, got {self.runtime.offload!r}")
        if self.runtime.exported is not None:
            raise ValueError(f"exported: must be unset for a pipeline, which runs none, got {self.runtime.exported!r}")

    @property
    def pipeline(self) -> Any:
        """The pipeline of diffusers over the loaded parts: the one that was brought, or one that is made once.

        A scheduler that is put into it takes effect; other weights are refused when the engine is used next.
        """
        self._check_whole()
        if self._followed is None:
            self._followed = FollowedPipeline(self.to_pipeline())
        if self._followed.pipeline.text_encoder is None and self._given is None:
            self._followed.put("text_encoder", self.text_encoder)
        return self._followed.pipeline

    def release_text_encoder(self) -> None:
        """Let go of the text encoder until it is needed again; one that was brought stays with its owner."""
        self.engine.prompts.release()
        if self._followed is not None and self._given is None:
            self._followed.put("text_encoder", None)

    def _follow_pipeline(self, engine: InversionEngine) -> InversionEngine:
        """Return the engine with the scheduler that somebody put into the pipeline meanwhile."""
        if self._followed is None or not self._followed.has_other_scheduler():
            return engine
        scheduler = self._followed.pipeline.scheduler
        followed = replace_scheduler(engine, scheduler, self.schedule)
        self._followed.put("scheduler", scheduler)
        return followed

"""A module that trains lends its transformer to an engine, and has it back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from lightning import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.engine.build import replace_scheduler
from ddim_lightning.engine.config import Runtime, Schedule
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.fast import make_fast
from ddim_lightning.engine.parts import PartSpec, make_part
from ddim_lightning.models.source import resolve_model
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.network.network import Network

_BESIDE = ("vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class Methods:
    """The `Methods` are those that a module is evaluated with; see `InversionCallback`."""

    schedule: Schedule | None = None
    inverter: Inverter | PartSpec | None = None
    editor: Editor | PartSpec | None = None
    guidance_scale: float | None = None
    inversion_prompt: str | None = ""


@dataclass(frozen=True)
class LiveEngine:
    """A `LiveEngine` is an engine over weights that train.

    Args:
        engine: The engine.
        guidance_scale: Of its edits.
        make_room: Brings the text encoder back to where it was before, when all prompts are encoded.
    """

    engine: InversionEngine
    guidance_scale: float
    make_room: Callable[[], None]


class EngineLender:
    """An `EngineLender` makes engines over the weights of a LightningModule as they are.

    Args:
        methods: What the engines do.
        model: Where the parts beside a transformer come from, see `InversionCallback`; they are kept. ``None`` for a
            `DDIMInversionModule`, which has its own.
        transformer: The transformer's name; ``None`` finds the only one.

    Raises:
        ValueError: Parts that are missing.
    """

    def __init__(self, methods: Methods, model: str | Mapping[str, Any] | None, transformer: str | None) -> None:
        if isinstance(model, Mapping) and set(model) != set(_BESIDE):
            raise ValueError(f"model: must be a name, or a mapping of {', '.join(_BESIDE)}, got {sorted(model)}")
        self.methods, self.model, self.transformer = methods, model, transformer
        self._beside: dict[str, Any] | None = dict(model) if isinstance(model, Mapping) else None

    def check(self, module: LightningModule) -> None:
        """Raise a ValueError for a module that no engine can be made of."""
        if not isinstance(module, DDIMInversionModule):
            find_transformer(module, self.transformer)
            if self.model is None:
                raise ValueError(f"model: must say where a {type(module).__name__} has its VAE from, got None")
            return
        # It is evaluated as it works itself.
        given = [name for name in ("model", "transformer") if getattr(self, name) is not None]
        given += ["inversion_prompt"] * (self.methods.inversion_prompt != "")
        if given:
            raise ValueError(f"{given[0]}: must be unset for a DDIMInversionModule, which has its own")

    @contextmanager
    def lend(self, module: LightningModule) -> Iterator[LiveEngine]:
        """Have an engine over a module's weights; the module and all random states are as before afterwards."""
        # What is made under inference mode, caches and parts that are loaded, could not take part in a training.
        with torch.inference_mode(False), torch.no_grad(), isolate_rng():
            made = self._lend_own if isinstance(module, DDIMInversionModule) else self._lend_foreign
            with made(module) as engine:
                yield engine

    @contextmanager
    def _lend_own(self, module: Any) -> Iterator[LiveEngine]:
        engine, methods = module.engine, self.methods
        prompts, encoder = engine.prompts, engine.prompts.text_encoder
        schedule = methods.schedule or module.schedule
        inverter = self._make(methods.inverter, Inverter, "inverter") or engine.inverter
        editor = self._make(methods.editor, Editor, "editor") or engine.editor
        step_cache = engine.step_cache
        if schedule.fast:
            editor, step_cache = make_fast(editor, step_cache)
        own = replace(engine, inverter=inverter, editor=editor, step_cache=step_cache)
        guidance = module.guidance_scale if methods.guidance_scale is None else methods.guidance_scale

        def make_room() -> None:
            if encoder is None:
                prompts.release()

        prompts.clear_cache()  # the text encoder may train, and have other weights now than a moment ago
        try:
            with _kept(engine.components.transformer, module, engine.components.vae):
                yield LiveEngine(replace_scheduler(own, engine.components.scheduler, schedule), guidance, make_room)
        finally:
            prompts.clear_cache()
            make_room()
            if isinstance(engine.network, Network):
                engine.network.clear_cache()  # sums of weights and adapters, as large as the weights

    @contextmanager
    def _lend_foreign(self, module: LightningModule) -> Iterator[LiveEngine]:
        transformer = find_transformer(module, self.transformer)
        if self._beside is None:
            assert isinstance(self.model, str)
            self._beside = load_beside(self.model, transformer)
        beside, methods = self._beside, self.methods
        parts = [part for part in beside.values() if isinstance(part, nn.Module)]
        with _kept(transformer, module, *parts):
            made = DDIMInversionModule.from_components(
                transformer=transformer,
                **beside,
                model=self.model if isinstance(self.model, str) else "loaded",
                runtime=Runtime(forward="diffusers", require_rotary=False),
                schedule=methods.schedule or Schedule(),
                inverter=methods.inverter,
                editor=methods.editor,
                guidance_scale=methods.guidance_scale,
                inversion_prompt=methods.inversion_prompt,
            )
            host = beside["text_encoder"].device
            made.load(transformer.device)

            def make_room() -> None:
                nn.Module.to(beside["text_encoder"], host)
                made.engine.prompts.release()

            yield LiveEngine(made.engine, made.guidance_scale, make_room)

    def _make(self, given: Any, kind: Any, name: str) -> Any:
        return None if given is None else make_part(given, kind, f"ddim_lightning.diffusion.{name}s", name)


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


@contextmanager
def _kept(transformer: CogVideoXTransformer3DModel, *modules: nn.Module) -> Iterator[None]:
    """Have modules evaluate, and afterwards as they were: modes, gradients' flags, devices, attention processors.

    Args:
        transformer: The one at work.
        modules: The module that trains, which stays where it is, and the parts beside the transformer.
    """
    everything = (transformer, *modules)
    modes = {layer: layer.training for module in everything for layer in module.modules()}
    flags = {weight: weight.requires_grad for module in everything for weight in module.parameters()}
    places = {module: next(module.parameters()).device for module in modules[1:]}
    processors = {block.attn1: block.attn1.processor for block in transformer.transformer_blocks}
    for module in everything:
        module.eval()
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

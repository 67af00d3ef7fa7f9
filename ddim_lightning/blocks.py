"""Inversion, reconstruction and edit are blocks of diffusers' modular pipelines.

A block is made for one stage, and works on the parts of a CogVideoX model that the pipeline holds: nothing is loaded or
copied. It runs the engine, so its latents are those of a `DDIMInversionModule` of the same parts.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.engine.config import Runtime, Schedule
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.types import EditRequest

_PARTS = {
    "transformer": CogVideoXTransformer3DModel,
    "vae": AutoencoderKLCogVideoX,
    "text_encoder": T5EncoderModel,
    "tokenizer": PreTrainedTokenizerBase,
    "scheduler": CogVideoXDDIMScheduler,
}
_FORWARD = ConfigSpec("forward", "fused", "Forward pass of the transformer; see `Runtime`.")
_SEED = InputParam("seed", int, default=0, description="Seed of a method that draws random numbers.")
_INVERSION = InputParam("inversion", Inversion, required=True, description="What `InvertBlock` made.")


class StageBlock(ModularPipelineBlocks):  # type: ignore[misc]  # diffusers has no types
    """A `StageBlock` is one stage of the work on a clip, as a block of a modular pipeline.

    Raises:
        ValueError: In a pipeline that lacks a part of the model, or whose model is not supported.
    """

    model_name = "cogvideox"
    expected_components: ClassVar = [ComponentSpec(name, kind) for name, kind in _PARTS.items()]

    @abstractmethod
    def run(self, components: Any, block_state: Any) -> None:
        """Do the stage.

        Args:
            components: The modular pipeline, with its parts and its ``config``.
            block_state: The block's inputs, to which its outputs are added.
        """

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the stage on the state of a pipeline, and return both."""
        block_state: BlockState = self.get_block_state(state)
        self.run(components, block_state)
        self.set_block_state(state, block_state)
        return components, state


class EncodeBlock(StageBlock):
    """An `EncodeBlock` encodes a video to latents, by the posterior's mode, and its image where the model takes one."""

    description = "Encodes a video to latents."
    inputs: ClassVar = [
        InputParam(
            "video", Tensor, required=True, description="(b, f, c, h, w) floats in 0 .. 1, or uint8 (f, c, h, w)."
        )
    ]
    intermediate_outputs: ClassVar = [
        OutputParam("latents", Tensor, "(b, f, c, h, w) float32, scaled."),
        OutputParam("image_latents", Tensor, "What an image-to-video model is shown; None for others."),
        OutputParam("num_frames", int, "Frames of the video."),
    ]

    def run(self, components: Any, block_state: Any) -> None:  # noqa: D102
        engine, video = _load_module(components).engine, block_state.video
        if not isinstance(video, Tensor):
            raise TypeError(f"video: must be a tensor, as read_clip makes it of a file, got a {type(video).__name__}")
        frames = video[None] if video.ndim == 4 else video
        block_state.latents, block_state.image_latents = engine.encode(video), None
        block_state.num_frames = frames.shape[1]
        if engine.components.limits.needs_image:
            first = video[0] if video.ndim == 4 else video[:, 0]
            block_state.image_latents = engine.encode_image(first, block_state.latents.shape[1])


class InvertBlock(StageBlock):
    """An `InvertBlock` finds the place of a video in the model's noise space; its config ``inverter`` is the method."""

    description = "Inverts clean latents, and keeps those of every noise level."
    expected_configs: ClassVar = [
        _FORWARD,
        ConfigSpec("inverter", None, "As in `DDIMInversionModule`: an `Inverter`, a name, or {class_path, init_args}."),
    ]
    inputs: ClassVar = [
        InputParam("latents", Tensor, required=True, description="(b, f, c, h, w) clean latents, scaled."),
        InputParam("image_latents", Tensor, description="What `EncodeBlock` made for an image-to-video model."),
        InputParam("num_inference_steps", int, default=50, description="Steps of the inversion and of each way back."),
        InputParam("inversion_prompt", str, default="", description="The text of the inversion."),
        _SEED,
    ]
    intermediate_outputs: ClassVar = [OutputParam("inversion", Inversion, "The trajectory; see `Inversion`.")]

    def run(self, components: Any, block_state: Any) -> None:  # noqa: D102
        schedule = Schedule(num_inference_steps=block_state.num_inference_steps)
        module = _load_module(components, inverter=components.config.inverter, schedule=schedule)
        block_state.inversion = module.engine.invert(
            block_state.latents,
            prompt=block_state.inversion_prompt,
            image_latents=block_state.image_latents,
            seed=block_state.seed,
        )


class ReconstructBlock(StageBlock):
    """A `ReconstructBlock` comes back from the noise under the inversion's own prompt."""

    description = "Reconstructs the latents of an inverted video."
    expected_configs: ClassVar = [_FORWARD]
    inputs: ClassVar = [_INVERSION]
    intermediate_outputs: ClassVar = [OutputParam("reconstructed_latents", Tensor, "(b, f, c, h, w) float32, scaled.")]

    def run(self, components: Any, block_state: Any) -> None:  # noqa: D102
        block_state.reconstructed_latents = _load_module(components).engine.reconstruct(block_state.inversion)


class EditBlock(StageBlock):
    """An `EditBlock` rebuilds an inverted video under a new prompt; its config ``editor`` is the method."""

    description = "Rebuilds an inverted video under a new prompt."
    expected_configs: ClassVar = [
        _FORWARD,
        ConfigSpec("editor", None, "As in `DDIMInversionModule`: an `Editor`, a name, or {class_path, init_args}."),
    ]
    inputs: ClassVar = [
        _INVERSION,
        InputParam("prompt", str, required=True, description="The text of the edited video."),
        InputParam("negative_prompt", str, default="", description="What guidance moves away from."),
        InputParam("source_prompt", str, description="A description of the source video, if there is one."),
        InputParam("guidance_scale", float, description=">= 0; None is what is published for CogVideoX."),
        InputParam("mask", Tensor, description="(1, f, 1, h, w) at the latents' size; see `EditRequest`."),
        InputParam("first_frame", Tensor, description="(c, h, w) uint8, for an image-to-video model; see `Clip`."),
        _SEED,
    ]
    intermediate_outputs: ClassVar = [OutputParam("edited_latents", Tensor, "(b, f, c, h, w) float32, scaled.")]

    def run(self, components: Any, block_state: Any) -> None:  # noqa: D102
        inversion = block_state.inversion
        if not isinstance(block_state.prompt, str):
            raise TypeError(f"prompt: must be one text, for more run the block again, got {block_state.prompt!r}")
        schedule = Schedule(num_inference_steps=len(inversion.schedule))  # only so that the editor's options fit
        module = _load_module(
            components,
            editor=components.config.editor,
            guidance_scale=block_state.guidance_scale,
            schedule=schedule,
        )
        image = block_state.first_frame
        if image is not None:
            module.video_limits.check_first_frame(tuple(image.shape))
            image = module.engine.encode_image(image, inversion.clean.shape[1])
        request = EditRequest(
            block_state.prompt,
            block_state.negative_prompt,
            block_state.source_prompt,
            module.guidance_scale,
            block_state.mask,
            image,
        )
        for sentence in module.editor.check_request(request, inversion.schedule, inversion.prompt):
            warnings.warn(sentence, stacklevel=2)
        block_state.edited_latents = module.engine.edit(inversion, request, seed=block_state.seed)


class DecodeBlock(StageBlock):
    """A `DecodeBlock` decodes what was reconstructed and what was edited, whichever is there."""

    description = "Decodes the latents of a reconstruction and of an edit."
    inputs: ClassVar = [
        InputParam("reconstructed_latents", Tensor, description="What `ReconstructBlock` made."),
        InputParam("edited_latents", Tensor, description="What `EditBlock` made."),
        InputParam("num_frames", int, description="What `EncodeBlock` told; CogVideoX1.5 needs it."),
    ]
    intermediate_outputs: ClassVar = [
        OutputParam("reconstructed_video", Tensor, "(b, f, c, h, w) floats in 0 .. 1, or None."),
        OutputParam("edited_video", Tensor, "(b, f, c, h, w) floats in 0 .. 1, or None."),
    ]

    def run(self, components: Any, block_state: Any) -> None:  # noqa: D102
        engine = _load_module(components).engine
        for name in ("reconstructed", "edited"):
            latents = block_state[f"{name}_latents"]
            block_state[f"{name}_video"] = None if latents is None else engine.decode(latents, block_state.num_frames)


def _load_module(components: Any, **options: Any) -> DDIMInversionModule:
    """Make a module of the parts of a modular pipeline, on its device; see `DDIMInversionModule.from_components`."""
    parts = {name: getattr(components, name) for name in _PARTS}
    if missing := [name for name, part in parts.items() if part is None]:
        rule = "must be in the pipeline before it runs, by load_components or update_components"
        raise ValueError(f"{', '.join(missing)}: {rule}, got None")
    forward = getattr(components.config, "forward", _FORWARD.default)
    module = DDIMInversionModule.from_components(**parts, runtime=Runtime(forward=forward), **options)
    module.load(components._execution_device)
    return module

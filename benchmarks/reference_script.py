"""The reference script, zai-org/CogVideo's ``inference/ddim_inversion.py``, is run as it is from a given path."""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXPipeline, DDIMInverseScheduler
from torch import Tensor, nn
from transformers import T5EncoderModel

from ddim_lightning.models.loading import Components


def load_script(path: Path) -> Any:
    """Import the script.

    Args:
        path: Of ``ddim_inversion.py``. It imports decord, a video reader that nothing here needs; where that is not
            installed an empty module stands in for it.

    Raises:
        FileNotFoundError: No such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"script: no such file, {path}")
    if "decord" not in sys.modules and importlib.util.find_spec("decord") is None:
        sys.modules["decord"] = types.ModuleType("decord")
    spec = importlib.util.spec_from_file_location("reference_script", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # torch.compile imports what it traces by its name
    spec.loader.exec_module(script)
    return script


class Reference:
    """A `Reference` is the script's inversion and reconstruction on a loaded model, by its own functions and settings.

    Args:
        script: From `load_script`.
        parts: The model. Its transformer keeps diffusers' own processors, which the script replaces while it edits.
        text_encoder: Of the model.
        steps: Of each direction.
        guidance_scale: As the script passes it to both.
        text_tokens: Length of the prompts; ``None`` for the script's own 226.
    """

    def __init__(
        self,
        script: Any,
        parts: Components,
        text_encoder: T5EncoderModel,
        steps: int,
        guidance_scale: float,
        text_tokens: int | None = None,
    ) -> None:
        self.script, self.steps, self.guidance_scale = script, steps, guidance_scale
        self.pipeline = CogVideoXPipeline(parts.tokenizer, text_encoder, parts.vae, parts.transformer, parts.scheduler)
        self.pipeline.set_progress_bar_config(disable=True)
        if text_tokens is not None:
            encode = functools.partial(self.pipeline.encode_prompt, max_sequence_length=text_tokens)
            self.pipeline.encode_prompt = encode

    def invert(self, latents: Tensor) -> Tensor:
        """Return the script's inverse trajectory, (steps, b, f, c, h, w), noisiest last.

        The script passes its guidance scale to the inversion too, and so evaluates two rows under equal texts.
        """
        scheduler = DDIMInverseScheduler(**self.pipeline.scheduler.config)
        return self._sample(latents, scheduler, "", None)

    def edit(self, noise: Tensor, trajectory: Tensor, prompt: str, compiled: bool = False) -> Tensor:
        """Return the script's edit from noise, with the four rows that it evaluates.

        Args:
            noise: Where it starts.
            trajectory: From `invert`.
            prompt: The new text.
            compiled: The processors are in place already (`patched`), where swapping them would compile anew.
        """
        override = nullcontext() if compiled else self.script.OverrideAttnProcessors(self.pipeline.transformer)
        with override:
            return self._sample(noise, self.pipeline.scheduler, prompt, reversed(trajectory))[-1]

    @contextmanager
    def patched(self) -> Iterator[None]:
        """The script's processors in place, as while it edits."""
        with self.script.OverrideAttnProcessors(self.pipeline.transformer):
            yield

    def predict_pair(self, latents: Tensor, source: Tensor, timestep: int, prompt: str) -> Tensor:
        """Return the guided velocity of one of its four-row steps, as `sample` works it out."""
        steps = torch.full((4,), timestep, device=latents.device)
        positive, negative = self.pipeline.encode_prompt(prompt, None, True, device=latents.device)
        _, _, _, height, width = latents.shape
        factor = self.pipeline.vae_scale_factor_spatial
        rotary = self.pipeline._prepare_rotary_positional_embeddings(
            height * factor, width * factor, latents.shape[1], latents.device
        )
        dtype = self.pipeline.transformer.dtype
        with self.patched():
            velocity = self.pipeline.transformer(
                torch.cat([latents, latents, source, source]).to(dtype),
                torch.cat([negative, positive] * 2),
                steps,
                image_rotary_emb=rotary,
                return_dict=False,
            )[0].float()
        negative, positive, _, _ = velocity.chunk(4)
        guided: Tensor = negative + self.guidance_scale * (positive - negative)
        return guided

    def _sample(self, latents: Tensor, scheduler: Any, prompt: str, reference: Any) -> Tensor:
        trajectory: Tensor = self.script.sample(
            pipeline=self.pipeline,
            latents=latents.to(self.pipeline.transformer.dtype),  # as the script's VAE gives them
            scheduler=scheduler,
            prompt=prompt,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=torch.Generator(device=latents.device).manual_seed(0),
            reference_latents=reference,
        )
        return trajectory


def apply_block_compile(blocks: nn.ModuleList) -> None:
    """Compile every block in place, full graphs and static shapes: the fair way to compile the script."""
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False)

"""A training step of the denoiser: levels and noise are drawn, the velocity is predicted and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.diffusion.objective import velocity_loss
from ddim_lightning.diffusion.steps import add_noise
from ddim_lightning.engine.config import Training
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.optimizers import MuonAdamW, is_block_matrix
from ddim_lightning.types import Latents


def draw_timesteps(count: int, num_train_timesteps: int, generator: torch.Generator) -> Tensor:
    """Draw training timesteps, one from each of ``count`` equal parts of the schedule, in random order.

    Args:
        count: How many, b.
        num_train_timesteps: Length of the schedule.
        generator: Source of the draw.

    Returns:
        (b,) int64, 0 .. ``num_train_timesteps - 1``.
    """
    parts = torch.randperm(count, generator=generator)
    drawn = (parts + torch.rand(count, generator=generator)) / count * num_train_timesteps
    return drawn.long().clamp_(max=num_train_timesteps - 1)


def compute_loss(
    engine: InversionEngine,
    latents: Latents,
    prompts: Sequence[str],
    generator: torch.Generator,
    caption_dropout: float = 0.0,
) -> Tensor:
    """Return the velocity loss of a batch, with gradients to whatever part of the model wants them.

    Args:
        engine: The model.
        latents: (b, f, c, h, w) clean latents, whole tokens of frames as `InversionEngine.encode` gives them.
        prompts: One caption a clip.
        generator: Source of levels, noise and dropped captions; lies on the CPU, so that a seed means the same
            everywhere.
        caption_dropout: Chance, 0 .. 1, that a caption is replaced by the empty one, which guidance needs.

    Returns:
        A scalar.

    Raises:
        ValueError: An image-to-video model, or latents that the model cannot take.
    """
    if engine.components.limits.needs_image:
        raise ValueError("model: must be a text-to-video model to train it, got an image-to-video model")
    engine.network.check_rows(latents)
    size, parts = latents.shape[0], engine.components
    timesteps = draw_timesteps(size, len(parts.scheduler.alphas_cumprod), generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    dropped = torch.rand(size, generator=generator) < caption_dropout
    captions = ["" if drop else prompt for prompt, drop in zip(prompts, dropped.tolist(), strict=True)]
    alphas = parts.scheduler.alphas_cumprod[timesteps].double()
    angle = torch.atan2((1.0 - alphas).sqrt(), alphas.sqrt()).to(latents).view(-1, 1, 1, 1, 1)
    embeds = engine.prompts.encode_batch(captions).to(parts.transformer.dtype)
    rotary = engine.network.get_rotary(latents)
    # diffusers' own forward: here every row has a timestep of its own, and gradients may be checkpointed.
    velocity = parts.transformer(
        add_noise(latents, noise, angle).to(parts.transformer.dtype),
        embeds,
        timesteps.to(latents.device),
        ofs=engine.network.make_ofs(latents),
        image_rotary_emb=None if rotary is None else (rotary[0][embeds.shape[1] :], rotary[1][embeds.shape[1] :]),
        return_dict=False,
    )[0]
    return velocity_loss(velocity.float(), latents, noise, angle)


def make_optimizer(parameters: Iterable[tuple[str, Tensor]], num_steps: int, options: Training) -> dict[str, Any]:
    """Make an optimizer with linear warm-up and one cosine over the whole training.

    Args:
        parameters: What trains, with names.
        num_steps: Optimizer steps of the training, where the cosine ends.
        options: The optimizer and its settings.

    Returns:
        What `LightningModule.configure_optimizers` returns.

    Raises:
        ValueError: Muon without a matrix to train.
    """
    named = list(parameters)
    rate, betas, decay = options.learning_rate, options.betas, options.weight_decay
    made: torch.optim.Optimizer
    if options.optimizer == "muon":
        matrices = [parameter for name, parameter in named if is_block_matrix(name, parameter)]
        others = [parameter for name, parameter in named if not is_block_matrix(name, parameter)]
        if not matrices:
            names = ", ".join(sorted({name.split(".")[0] for name, _ in named}))
            raise ValueError(f"training.optimizer: muon needs weight matrices of transformer blocks, got only {names}")
        made = MuonAdamW(matrices, others, learning_rate=rate, betas=betas, weight_decay=decay)
    else:
        every = [parameter for _, parameter in named]
        made = torch.optim.AdamW(every, lr=rate, betas=betas, weight_decay=decay)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(options.warmup_steps, 1))
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / num_steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(made, factor)
    return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

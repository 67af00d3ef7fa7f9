"""A training step of a loaded model: its objectives ask it for velocities, and an optimizer follows the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor

from ddim_lightning.diffusion.objectives import Objective, Samples, TrainingLevels, Velocity, compute_losses
from ddim_lightning.diffusion.objectives.levels import NoLevelError
from ddim_lightning.engine.config import Training
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.optimizers import MuonAdamW, is_block_matrix, make_found
from ddim_lightning.network.predictor import TransformerPredictor
from ddim_lightning.types import Latents

_PARTS = 5
"""Equal parts of the timesteps, of each of which a validation knows the loss."""


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
        generator: See `Objective`; likewise ``caption_dropout``.
        caption_dropout: Chance, 0 .. 1.

    Returns:
        A scalar.

    Raises:
        ValueError: An image-to-video model, or latents that the model cannot take.
    """
    return compute_objectives(engine, (Velocity(),), Samples(latents, prompts), generator, caption_dropout)[0]


def compute_objectives(
    engine: InversionEngine,
    objectives: Sequence[Objective],
    samples: Samples,
    generator: torch.Generator,
    caption_dropout: float = 0.0,
    levels: TrainingLevels | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of objectives with gradients, and the loss of each by its class name.

    Args:
        engine: The model.
        objectives: What is to become small.
        samples: The batch.
        generator: See `Objective`; likewise ``caption_dropout``.
        caption_dropout: Chance, 0 .. 1.
        levels: The noise levels; ``None`` is all of the model's.

    Raises:
        ValueError: See `compute_losses`; pairs that an objective needs and the batch does not hold; an image-to-video
            model, or latents that the model cannot take.
    """
    parts = engine.components
    if parts.limits.needs_image:
        raise ValueError("model: must be a text-to-video model to train it, got an image-to-video model")
    engine.network.check_rows(samples.latents)
    levels = _make_levels(engine) if levels is None else levels
    prompts = engine.prompts
    encode = prompts.encode_batch if prompts.cache is None else prompts.read_batch
    predict = TransformerPredictor(parts.transformer, encode, engine.network.get_rotary)
    return compute_losses(objectives, predict, samples, levels, generator, caption_dropout)


def compute_by_level(
    engine: InversionEngine, objectives: Sequence[Objective], samples: Samples, seed: int
) -> dict[str, Tensor]:
    """Return the weighted sum of objectives by noise level, each part under the same noise.

    Args:
        engine: The model.
        objectives: What is to become small; they draw their levels by `TrainingLevels`.
        samples: The batch.
        seed: Of levels and noise.

    Returns:
        By the timesteps of the part, ``t000-199`` for example, cleanest first; without parts where an objective trains
        at no level.

    Raises:
        ValueError: See `compute_objectives`.
    """
    losses = {}
    for levels in _make_levels(engine).divide(_PARTS):
        generator, part = torch.Generator().manual_seed(seed), levels.part
        assert part is not None
        with suppress(NoLevelError):
            loss, _ = compute_objectives(engine, objectives, samples, generator, levels=levels)
            losses[f"t{part.start:03d}-{part.stop - 1:03d}"] = loss
    return losses


def _make_levels(engine: InversionEngine) -> TrainingLevels:
    scheduler = engine.components.scheduler
    return TrainingLevels.make(scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod))


def make_samples(batch: Mapping[str, Any], encode: Callable[[Tensor], Latents]) -> Samples:
    """Take the clips or pairs out of a batch.

    Args:
        batch: Of clips: ``latents`` (b, f, c, h, w), clean and scaled, or ``frames`` (b, f, c, h, w) uint8; and
            ``prompts``, a caption each. Of pairs: ``target``, ``source`` (or ``target_frames``, ``source_frames``),
            ``target_prompts``, and where they are known ``source_prompts`` and ``reads``, the source of each target.
        encode: Frames to latents.

    Raises:
        ValueError: A batch that lacks one of them.
    """

    def take(latents: str, frames: str) -> Latents:
        if latents in batch:
            return cast(Tensor, batch[latents]).float()
        if frames in batch:
            return encode(batch[frames])
        raise ValueError(f"batch: must hold {latents} or {frames}, got {', '.join(map(str, batch))}")

    pairs = any(name in batch for name in ("target", "target_frames"))
    prompts = "target_prompts" if pairs else "prompts"
    if prompts not in batch:
        raise ValueError(f"batch: must hold {prompts}, got {', '.join(map(str, batch))}")
    if not pairs:
        return Samples(take("latents", "frames"), batch["prompts"])
    sources = tuple(int(source) for source in batch.get("reads", ()))
    return Samples(
        take("target", "target_frames"),
        batch["target_prompts"],
        take("source", "source_frames"),
        batch.get("source_prompts", ()),
        sources,
    )


def check_optimizer(options: Training) -> None:
    """Raise a ValueError where an optimizer is not installed or does not take its settings; one value is tried."""
    if options.optimizer != "muon":
        make_optimizer([("one", torch.nn.Parameter(torch.zeros(1, 1)))], 1, options)


def make_optimizer(parameters: Iterable[tuple[str, Tensor]], num_steps: int, options: Training) -> dict[str, Any]:
    """Make an optimizer with linear warm-up and one cosine over the whole training.

    Args:
        parameters: What trains, with names.
        num_steps: Optimizer steps of the training, where the cosine ends.
        options: The optimizer and its settings.

    Returns:
        What `LightningModule.configure_optimizers` returns.

    Raises:
        ValueError: Muon without a matrix to train; see also `make_found`.
    """
    named = list(parameters)
    settings: dict[str, Any] = {
        "learning_rate": options.learning_rate,
        "betas": options.betas,
        "weight_decay": options.weight_decay,
    }
    made: torch.optim.Optimizer
    if options.optimizer == "muon":
        matrices = [parameter for name, parameter in named if is_block_matrix(name, parameter)]
        others = [parameter for name, parameter in named if not is_block_matrix(name, parameter)]
        if not matrices:
            names = ", ".join(sorted({name.split(".")[0] for name, _ in named}))
            raise ValueError(f"training.optimizer: muon needs weight matrices of transformer blocks, got only {names}")
        made = MuonAdamW(matrices, others, **settings)
    else:
        path = "torch.optim.AdamW" if options.optimizer == "adamw" else options.optimizer
        made = make_found(path, [parameter for _, parameter in named], **settings)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(options.warmup_steps, 1))
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / num_steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(made, factor)
    return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

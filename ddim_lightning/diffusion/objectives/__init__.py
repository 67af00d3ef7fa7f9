"""An objective is what a training makes small; a file holds one, and several add up by their weights."""

from ddim_lightning.diffusion.objectives.base import Objective, Predict, Samples, compute_losses
from ddim_lightning.diffusion.objectives.in_context_editing import InContextEditing, in_context_loss
from ddim_lightning.diffusion.objectives.inversion_consistency import InversionConsistency, inversion_consistency_loss
from ddim_lightning.diffusion.objectives.levels import TrainingLevels, draw_timesteps
from ddim_lightning.diffusion.objectives.velocity import Velocity, velocity_loss

__all__ = [
    "InContextEditing",
    "InversionConsistency",
    "Objective",
    "Predict",
    "Samples",
    "TrainingLevels",
    "Velocity",
    "compute_losses",
    "draw_timesteps",
    "in_context_loss",
    "inversion_consistency_loss",
    "velocity_loss",
]

"""The mathematics of inversion and editing is here: schedule, steps, inverters, editors, objectives and the loops."""

from ddim_lightning.diffusion.objectives import in_context_loss, inversion_consistency_loss, velocity_loss

__all__ = ["in_context_loss", "inversion_consistency_loss", "velocity_loss"]

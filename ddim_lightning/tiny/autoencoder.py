"""A module trains the tiny model's VAE, an `AutoencoderKLCogVideoX` for clips of 64 x 64 pixels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLCogVideoX
from jaxtyping import Float, UInt8
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

from ddim_lightning.engine.config import Training, make_options
from ddim_lightning.engine.training import make_optimizer
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.report.sheet import Row

Batch = dict[str, Any]
"""``frames``: (b, f, c, h, w) uint8; other keys are ignored."""


class AutoencoderModule(LightningModule):
    """An `AutoencoderModule` trains a small VAE: squared and absolute error of the round trip, and a light KL term.

    The learning rate warms up linearly and falls to zero along a cosine that ends with the Trainer's ``max_steps``.

    Args:
        block_out_channels: Channels of the blocks; ``n`` blocks shrink height and width by ``2 ** (n - 1)``.
        latent_channels: Channels of the latents.
        layers_per_block: Residual layers a block has on the way down (one more on the way up).
        norm_num_groups: Groups of the group norms; divides all of ``block_out_channels``.
        sample_size: Height and width of a whole frame in pixels, as written into the VAE's config.
        learning_rate: Peak learning rate of AdamW.
        betas: Moments of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Steps of linear warm-up.
        l1_weight: Weight of the absolute error beside the squared one, both over pixels in -1 .. 1.
        kl_weight: Weight of the KL divergence from the unit normal, averaged over latent values.
        start: Folder of a trained VAE of the same sizes, in diffusers' layout, whose weights to start from.
        train_encoder: Whether the encoder trains too. A second stage without it tunes the decoder alone, while others
            already train on the latents.
        seed: Of the posterior's noise.

    Raises:
        ValueError: Group norms that do not divide the channels.
        FileNotFoundError: A ``start`` without weights.
    """

    def __init__(
        self,
        block_out_channels: Sequence[int] = (16, 32, 48),
        latent_channels: int = 8,
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        sample_size: int = 64,
        learning_rate: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        l1_weight: float = 0.05,
        kl_weight: float = 1e-4,
        start: str | None = None,
        train_encoder: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if any(channels % norm_num_groups for channels in block_out_channels):
            channels = tuple(block_out_channels)
            raise ValueError(f"norm_num_groups must divide block_out_channels {channels}, got {norm_num_groups}")
        self.save_hyperparameters()
        blocks = len(block_out_channels)
        self.vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * blocks,
            up_block_types=("CogVideoXUpBlock3D",) * blocks,
            block_out_channels=tuple(block_out_channels),
            latent_channels=latent_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            sample_height=sample_size,
            sample_width=sample_size,
        )
        if start is not None:
            self.vae.load_state_dict(load_file(Path(start) / "diffusion_pytorch_model.safetensors"))
        self.vae.encoder.requires_grad_(train_encoder)

    def forward(self, frames: UInt8[Tensor, "b f c h w"]) -> UInt8[Tensor, "b f c h w"]:
        """Round trip through the latents' means; (b, f, c, h, w) uint8 in and out."""
        latents = self.vae.encode(make_video(frames)).latent_dist.mode()
        decoded: Tensor = self.vae.decode(latents).sample
        return ((decoded.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).transpose(1, 2)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a round trip through sampled latents."""
        video = make_video(batch["frames"])
        posterior = self.vae.encode(video).latent_dist
        # The noise depends on the step and the rank alone, so that a resumed run draws what an unbroken one would.
        noise_seed = self.hparams["seed"] + self.global_step * self.trainer.world_size + self.global_rank
        latents = posterior.sample(torch.Generator(self.device).manual_seed(noise_seed))
        error: Tensor = self.vae.decode(latents).sample.float() - video
        squared, absolute = error.square().mean(), error.abs().mean()
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss: Tensor = squared + self.hparams["l1_weight"] * absolute + self.hparams["kl_weight"] * divergence
        losses = {"train/loss": loss, "train/squared": squared, "train/absolute": absolute, "train/kl": divergence}
        self.log_dict(losses, batch_size=len(video))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the round trip's PSNR in dB, averaged over clips."""
        frames = batch["frames"]
        error = (self(frames).float() - frames.float()).div(255).square().flatten(1).mean(1)
        psnr = -10 * error.clamp(min=1e-10).log10().mean()
        self.log("val/psnr", psnr, batch_size=len(frames), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, linear warm-up, one cosine over the whole training."""
        names = ("learning_rate", "betas", "weight_decay", "warmup_steps")
        options = make_options(Training, {name: self.hparams[name] for name in names})
        trained = [(name, part) for name, part in self.vae.named_parameters() if part.requires_grad]
        optimizer = make_optimizer(trained, int(self.trainer.estimated_stepping_batches), options)
        return cast(OptimizerLRScheduler, optimizer)

    def make_sheet_rows(self, batch: Mapping[str, Any]) -> tuple[list[Row], str]:
        """Return each clip of a validation batch beside its round trip, for a contact sheet; and what they show."""
        rows = []
        for k, frames in enumerate(batch["frames"]):
            decoded = self(frames[None].to(self.device))[0].cpu()
            note = f"{psnr(decoded / 255, frames / 255):.1f} dB"
            rows += [Row(f"clip {k}", frames, "source"), Row(f"clip {k}", decoded, "round trip", note)]
        return rows, "source and round trip"

    @torch.no_grad()
    def save_pretrained(self, folder: Path, frames: UInt8[Tensor, "b f c h w"], dtype: torch.dtype) -> None:
        """Write the VAE in diffusers' layout, with the scaling factor that gives its latents unit variance.

        Args:
            folder: Made with its parents where it is missing; files of the same names are replaced.
            frames: (b, f, c, h, w) uint8, the clips whose latents are measured, around zero as a factor has no offset.
            dtype: Of the weights in the file.
        """
        means = torch.cat([self.vae.encode(make_video(clip[None])).latent_dist.mode() for clip in frames])
        vae = nn.Module.to(copy.deepcopy(self.vae), dtype)  # diffusers' own warns of float32 layers it does not have
        vae.register_to_config(scaling_factor=1.0 / float(means.float().square().mean().sqrt()))
        vae.save_pretrained(folder)


def make_video(frames: UInt8[Tensor, "b f c h w"]) -> Float[Tensor, "b c f h w"]:
    """Make the VAE's input, pixels in -1 .. 1 with the channels before the frames."""
    return frames.transpose(1, 2).float() / 127.5 - 1

"""Training of the VAE: it learns, it repeats itself, it resumes exactly, and its folder is a VAE of diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from ddim_lightning.models.vae import decode_latents, encode_video
from ddim_lightning.tiny.autoencoder import AutoencoderModule, make_video
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule

SMALL = {"block_out_channels": (4, 6, 8), "latent_channels": 5, "norm_num_groups": 2, "warmup_steps": 3}


def fit(folder, *, steps, horizon, resume=False, **options):
    """Train for some steps of a training that has ``horizon`` steps; the losses of its steps."""
    seed_everything(0, verbose=False)
    losses = []

    class Recorded(AutoencoderModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(float(loss.detach()))
            self.trainer.should_stop = self.global_step + 1 >= steps
            return loss

    module = Recorded(**{**SMALL, **options})
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=horizon,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EMAWeightAveraging(decay=0.9), ModelCheckpoint(folder, save_last=True, every_n_train_steps=4)],
    )
    data = ShapesDataModule(batch_size=2, crop=16)
    trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return module, losses


def test_training_repeats_itself_and_resuming_in_the_middle_changes_nothing(tmp_path):
    whole, losses = fit(tmp_path / "whole", steps=6, horizon=6)
    again, losses_again = fit(tmp_path / "again", steps=4, horizon=6)
    resumed, losses_resumed = fit(tmp_path / "again", steps=6, horizon=6, resume=True)
    assert len(losses) == 6
    assert losses_again == losses[:4]
    assert losses_resumed == losses[4:]
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not all(torch.equal(one, two) for one, two in zip(whole.parameters(), again.parameters(), strict=True))


def test_training_learns(tmp_path):
    _, losses = fit(tmp_path, steps=36, horizon=72, learning_rate=5e-3)
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


def test_second_stage_starts_from_a_folder_and_leaves_the_encoder_alone(tmp_path):
    torch.manual_seed(1)
    first = AutoencoderModule(**SMALL)
    frames = ShapesDataModule(val_clips=2).val_dataloader().dataset
    clips = torch.stack([frames[i]["frames"] for i in range(2)])
    first.save_pretrained(tmp_path / "vae", clips, torch.float32)
    second, _ = fit(tmp_path / "run", steps=2, horizon=2, start=str(tmp_path / "vae"), train_encoder=False)
    for one, two in zip(first.vae.encoder.parameters(), second.vae.encoder.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=0)  # the average of equal weights rounds
    assert not torch.equal(first.vae.decoder.conv_out.conv.weight, second.vae.decoder.conv_out.conv.weight)


def test_saved_folder_gives_unit_latents_and_the_module_s_round_trip(tmp_path):
    torch.manual_seed(2)
    module = AutoencoderModule(**SMALL).eval()
    clips = next(iter(ShapesDataModule(val_clips=3).val_dataloader()))["frames"]
    module.save_pretrained(tmp_path, clips, torch.float32)
    vae = AutoencoderKLCogVideoX.from_pretrained(tmp_path, use_safetensors=True).eval()
    with torch.no_grad():
        latents = encode_video(vae, clips)
        decoded = (decode_latents(vae, latents) * 255).round().to(torch.uint8)
        expected = module(clips)
    assert latents.shape == (3, 3, 5, 16, 16)
    assert float(latents.square().mean()) == pytest.approx(1.0, rel=1e-4)
    assert int((decoded.int() - expected.int()).abs().max()) <= 1


def test_video_has_the_vae_s_axes_and_range():
    frames = torch.zeros(2, 9, 3, 8, 16, dtype=torch.uint8)
    frames[1, 4, 2, 3, 5] = 255
    video = make_video(frames)
    assert video.shape == (2, 3, 9, 8, 16)
    assert float(video.min()) == -1.0 and float(video[1, 2, 4, 3, 5]) == 1.0 and float(video.sum()) == 2 - video.numel()


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"norm_num_groups must divide block_out_channels \(4, 6, 8\), got 4"):
        AutoencoderModule(**{**SMALL, "norm_num_groups": 4})

"""Fine-tune a CogVideoX transformer in a LightningModule of your own, and see while it trains how its edits change."""

from __future__ import annotations

import sys

import torch
from diffusers import CogVideoXPipeline
from lightning import LightningModule, Trainer
from peft import LoraConfig

from ddim_lightning import Clip, InversionCallback, InversionConsistency, Schedule, Velocity
from ddim_lightning.diffusion.objectives import Samples, TrainingLevels, compute_losses
from ddim_lightning.models.source import resolve_model
from ddim_lightning.network.predictor import TransformerPredictor
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule


class MyFinetuning(LightningModule):
    """Your own training: a LoRA on the transformer, and two objectives."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.pipe = CogVideoXPipeline.from_pretrained(resolve_model(model))
        self.transformer, self.vae, self.text_encoder = self.pipe.transformer, self.pipe.vae, self.pipe.text_encoder
        self.requires_grad_(False)
        self.transformer.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v"]))
        self.predict_velocity = TransformerPredictor(self.transformer, self.encode_prompts)
        self.levels = TrainingLevels.make(self.pipe.scheduler.alphas_cumprod)
        self.objectives = (Velocity(), InversionConsistency(weight=10.0))

    def encode_prompts(self, prompts):
        length = self.transformer.config.max_text_seq_length
        return self.pipe.encode_prompt(list(prompts), "", False, max_sequence_length=length, device=self.device)[0]

    def training_step(self, batch, batch_idx):
        video = batch["frames"].transpose(1, 2).float() / 127.5 - 1  # (b, c, f, h, w)
        with torch.no_grad():
            latents = self.vae.encode(video).latent_dist.mode().transpose(1, 2) * self.vae.config.scaling_factor
        draw = torch.Generator().manual_seed(self.global_step)
        samples = Samples(latents, batch["prompts"])
        loss, parts = compute_losses(self.objectives, self.predict_velocity, samples, self.levels, draw, 0.1)
        self.log_dict({f"train/{name}": value for name, value in parts.items()})
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([weight for weight in self.parameters() if weight.requires_grad], lr=1e-3)


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    data = ShapesDataModule(batch_size=4, predict_clips=1)
    clip: Clip = next(iter(data.predict_dataloader()))
    watch = InversionCallback([clip], "tiny", every_n_steps=steps, schedule=Schedule(num_inference_steps=10))
    trainer = Trainer(max_steps=steps, callbacks=[watch], limit_val_batches=0)
    trainer.fit(MyFinetuning("tiny"), data)
    print({name: round(float(value), 6) for name, value in trainer.callback_metrics.items()})

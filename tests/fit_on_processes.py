"""A program that fits a small model in the processes that torchrun starts; `tests/test_fit_on_processes.py` runs it."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from ddim_lightning import DDIMInversionModule, Training
from ddim_lightning.data.streams import get_progress
from ddim_lightning.runtime.processes import leave_group
from ddim_lightning.tiny.scene_latents import EndlessBatches

IN_CONTEXT = {"class_path": "InContextEditing", "init_args": {"num_inference_steps": [2, 4]}}
CASES = {
    "ddp-lora": {"strategy": "ddp"},
    "fsdp-lora": {"strategy": "fsdp", "training": {"gradient_checkpointing": True}},
    "ddp-transformer": {"strategy": "ddp", "training": {"parts": ["transformer"]}},
    "fsdp-transformer": {"strategy": "fsdp", "training": {"parts": ["transformer"]}},
    "fsdp-text_encoder": {"strategy": "fsdp", "training": {"parts": ["transformer", "text_encoder"]}},
    "fsdp-muon": {"strategy": "fsdp", "training": {"parts": ["transformer"], "optimizer": "muon"}},
    "fsdp-mixed": {"strategy": "fsdp", "precision": "bf16-mixed"},
    "fsdp-shards": {"strategy": "fsdp", "shards": True},
    "fsdp-resumed": {"strategy": "fsdp", "ckpt_path": "fsdp-lora/step=2.ckpt"},
    "fsdp-resumed-shards": {"strategy": "fsdp", "ckpt_path": "fsdp-shards/step=2.ckpt"},
    "ddp-text_encoder": {"strategy": "ddp", "training": {"parts": ["transformer", "text_encoder"]}},
    "ddp-resumed": {"strategy": "ddp", "ckpt_path": "fsdp-lora/step=2.ckpt"},
}
"""What is fitted on two processes; each has to end as one process does that accumulates two batches."""
STEPS = 4


class Pairs(LightningDataModule):
    """Batches of pairs that depend on their place among those of all processes alone."""

    def train_dataloader(self):
        rank, world, done = get_progress(self.trainer)
        return DataLoader(EndlessBatches(self.make, done * world + rank, world), batch_size=None)

    def make(self, k):
        def draw(rows, seed):
            return torch.randn(rows, 2, 8, 4, 6, generator=torch.Generator().manual_seed(seed))

        prompts = {"source_prompts": ["a circle"], "target_prompts": ["a red circle", "a square"]}
        return {"source": draw(1, k), "target": draw(2, 500 + k), "reads": torch.tensor([0, 0]), **prompts}


def make_module(model, **options):
    options = {"parts": ["lora"], "rank": 4, "learning_rate": 1e-3, "warmup_steps": 0, **options}
    return DDIMInversionModule(str(model), training=Training(objectives=(IN_CONTEXT,), **options))


def fit(module, folder, *, strategy="auto", devices=1, ckpt_path=None, max_steps=STEPS, **settings):
    """Fit, and keep a checkpoint of the middle and the end."""
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=STEPS // 2, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=max_steps,
        max_epochs=-1,
        gradient_clip_val=1e-2,  # far below their norm
        accumulate_grad_batches=2 // devices,
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, Pairs(), ckpt_path=ckpt_path)
    return trainer


def main(model, folder, names):
    """Fit the cases that are named."""
    for name in names:
        options = {"shards": False, "ckpt_path": None, "training": {}, **CASES[name]}
        strategy, shards, training = (options.pop(key) for key in ("strategy", "shards", "training"))
        if strategy == "fsdp":
            sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
            strategy = ModelParallelStrategy(**sizes, save_distributed_checkpoint=shards)
        if options["ckpt_path"] is not None:
            options["ckpt_path"] = folder / options["ckpt_path"]
        fit(make_module(model, **training), folder / name, strategy=strategy, devices=2, **options)


if __name__ == "__main__":
    with leave_group():
        main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))

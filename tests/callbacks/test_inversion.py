"""Inversions while a foreign module trains: the training does not notice, and what is logged is what the weights do."""

from __future__ import annotations

import csv
import random
import warnings

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from ddim_lightning import Clip, DDIMInversionModule, InversionCallback, Runtime, Schedule
from ddim_lightning.callbacks.live_engine import find_transformer
from ddim_lightning.engine.clip_job import ClipJob, make_clip_seed
from ddim_lightning.models.loading import load_components, load_text_encoder

STEPS = Schedule(num_inference_steps=2)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def make_clip(name="clip", size=32):
    frames = torch.randint(0, 256, (5, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Clip(name, frames, prompts=("a red circle",), source_prompt="a cross")


def load_transformer(model):
    return load_components(str(model), device=torch.device("cpu"), dtype=torch.float32).transformer


class Foreign(LightningModule):
    """Trains an adapter and one block, with dropout and every source of random numbers there is."""

    def __init__(self, model):
        super().__init__()
        self.inner = nn.ModuleDict({"deep": load_transformer(model)})
        transformer = self.inner["deep"]
        transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
        transformer.transformer_blocks[1].ff.requires_grad_(True)
        transformer.enable_gradient_checkpointing()
        self.dropout = nn.Dropout(0.3)
        self.losses = []

    def training_step(self, batch, batch_idx):
        noise = torch.randn_like(batch) * random.random() + float(np.random.rand())  # noqa: NPY002
        text = torch.zeros(len(batch), 16, 24)
        out = self.inner["deep"](self.dropout(batch), text, torch.tensor([500]), image_rotary_emb=None)[0]
        loss = (out - noise).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([weight for weight in self.parameters() if weight.requires_grad], lr=1e-2)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        return DataLoader([torch.randn(1, 2, 8, 8, 8, generator=generator) for _ in range(2)], batch_size=None)


class State(Callback):
    """Notes, before the next batch, what a guest might have left."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, *_):
        arrays = np.random.get_state()  # noqa: NPY002
        layers = [
            (layer.training, len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in module.modules()
        ]
        weights = [(name, p.requires_grad, p.grad is None, str(p.device)) for name, p in module.named_parameters()]
        processors = [type(block.attn1.processor) for block in module.inner["deep"].transformer_blocks]
        states = torch.get_rng_state().tolist(), arrays[1].tolist(), arrays[2:], random.getstate()
        self.seen.append((states, layers, weights, processors, torch.is_grad_enabled(), torch.get_default_dtype()))


def fit(module, folder, *callbacks, **more):
    seed_everything(5, verbose=False)
    options = QUIET | {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "default_root_dir": folder}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(**options | more, callbacks=list(callbacks))
        trainer.fit(module)
    return trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_foreign_training_does_not_notice(tiny_model, tmp_path, precision):
    seen = []
    for name in ("without", "with"):
        torch.manual_seed(1)  # of the adapter
        module, state = Foreign(tiny_model), State()
        guest = InversionCallback([make_clip()], str(tiny_model), every_n_steps=1, schedule=STEPS)
        fit(module, tmp_path / name, state, *[guest] * (name == "with"), precision=precision)
        weights = {key: value.tolist() for key, value in module.state_dict().items()}
        seen.append((module.losses, state.seen, weights))
    assert len(seen[0][0]) == 4
    assert seen[0] == seen[1]
    assert [path.name for path in sorted((tmp_path / "with" / "inversions").iterdir())] == [
        f"step-{step:06d}.png" for step in (1, 2, 3, 4)
    ]


def test_what_is_logged_is_what_the_weights_do_and_checkpoints_can_go_by_it(tiny_model, tmp_path):
    parts = load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)
    encoder = load_text_encoder(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)
    given = {"vae": parts.vae, "text_encoder": encoder, "tokenizer": parts.tokenizer, "scheduler": parts.scheduler}
    encoder.requires_grad_(True).train()
    module, keep = Foreign(tiny_model), ModelCheckpoint(tmp_path, monitor="val/round_trip_psnr", mode="max")
    guest = InversionCallback([make_clip()], given, schedule=STEPS, every_n_epochs=2)
    logger = CSVLogger(tmp_path, name="logs")
    trainer = fit(module, tmp_path, guest, keep, logger=logger, enable_checkpointing=True, max_epochs=2)
    assert encoder.training
    assert all(weight.requires_grad for weight in encoder.parameters())

    again = DDIMInversionModule.from_components(
        transformer=find_transformer(module), **given, schedule=STEPS, runtime=Runtime(forward="diffusers")
    )
    again.load("cpu")
    job = ClipJob(again.engine, make_clip(), seed=make_clip_seed(0, "clip"), guidance_scale=again.guidance_scale)
    result = job.run()
    wanted = {
        "val/round_trip": result.diagnosis["level_errors"][-1],
        "val/round_trip_psnr": result.metrics["reconstruction"]["psnr"],
        "val/round_trip_psnr_vs_vae": result.metrics["reconstruction"]["psnr_vs_vae"],
        "val/edit_psnr_vs_source": result.edits[0].metrics["psnr_vs_source"],
        "val/edit_ssim_vs_source": result.edits[0].metrics["ssim_vs_source"],
    }
    with open(logger.experiment.metrics_file_path, newline="") as file:
        (logged,) = [row for row in csv.DictReader(file) if row["val/round_trip_psnr"]]
    assert {name: float(logged[name]) for name in wanted} == pytest.approx(wanted, rel=1e-5)
    assert int(logged["step"]) == 4
    best = wanted["val/round_trip_psnr"]
    assert float(trainer.callback_metrics["val/round_trip_psnr"]) == pytest.approx(best, rel=1e-5)
    assert float(keep.best_model_score) == pytest.approx(best, rel=1e-5)
    steps, editor = STEPS.num_inference_steps, again.engine.editor
    nfe = again.engine.inverter.count_nfe(steps) + steps + editor.count_nfe(job.requests[0], again.engine.schedule, 1)
    assert sum(result.nfe.values()) == nfe


class Images(CSVLogger):
    """A logger that takes images, as that of Weights & Biases does."""

    def __init__(self, folder):
        super().__init__(folder)
        self.images = []

    def log_image(self, key, images, step=None):
        self.images += [(key, step, image.size) for image in images]


def test_a_logger_that_takes_images_gets_the_sheet(tiny_model, tmp_path):
    logger = Images(tmp_path)
    guest = InversionCallback([make_clip()], str(tiny_model), schedule=STEPS, every_n_steps=3, every_n_epochs=None)
    fit(Foreign(tiny_model), tmp_path, guest, logger=logger)
    ((key, step, size),) = logger.images
    assert (key, step) == ("inversions", 3)
    with Image.open(tmp_path / "lightning_logs" / "version_0" / "inversions" / "step-000003.png") as sheet:
        assert sheet.size == size


def test_a_clip_that_fails_costs_neither_the_others_nor_the_training(tiny_model, tmp_path):
    broken = Clip("broken", torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    module = Foreign(tiny_model)
    guest = InversionCallback([broken, make_clip()], str(tiny_model), schedule=STEPS)
    seed_everything(5, verbose=False)
    trainer = Trainer(
        **QUIET, max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[guest]
    )
    with pytest.warns(UserWarning, match="clip broken: skipped: ValueError: frames: "):
        trainer.fit(module)
    assert "val/round_trip_psnr" in trainer.callback_metrics


def test_a_module_without_a_transformer_or_with_several_is_refused_before_the_training(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"^transformer: .*BoringModel"):
        fit(BoringModel(), tmp_path, InversionCallback([make_clip()], "tiny"))
    two = nn.ModuleDict({"first": load_transformer(tiny_model), "teacher": load_transformer(tiny_model)})
    with pytest.raises(ValueError, match=r"^transformer: .*first, teacher"):
        find_transformer(two)
    assert find_transformer(two, "teacher") is two["teacher"]
    with pytest.raises(ValueError, match=r"^transformer: .*'second'"):
        find_transformer(two, "second")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clips", {"clips": []}),
        ("clips", {"clips": 0}),
        ("every_n_epochs", {"every_n_epochs": 0}),
        ("every_n_steps", {"every_n_steps": 0}),
        ("every_n_epochs", {"clips": 2, "every_n_epochs": 1}),
        ("model", {"model": {"vae": None}}),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name, options):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        InversionCallback(**{"clips": [make_clip()], "model": "tiny"} | options)

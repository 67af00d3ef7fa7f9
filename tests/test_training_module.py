"""A LoRA trains under a real Trainer: on clips and on pairs, alone in checkpoints, and resumed to the bit."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from ddim_lightning import DDIMInversionModule, InContextEditing, Training, Velocity
from ddim_lightning.engine.clip_job import make_clip_seed
from ddim_lightning.engine.training import compute_by_level, compute_objectives, make_samples
from tests.test_module import QUIET, Latents, Losses

IN_CONTEXT = {"class_path": "InContextEditing", "init_args": {"num_inference_steps": [2, 4]}}


class Pairs(LightningDataModule):
    """Two sources, one with two edits, as an endless stream that resumes should."""

    def train_dataloader(self):
        return DataLoader([self.make(k) for k in range(self.trainer.global_step, 6)], batch_size=None)

    def val_dataloader(self):
        return DataLoader([self.make(100)], batch_size=None)

    def make(self, k):
        def draw(rows, seed):
            return torch.randn(rows, 2, 8, 4, 6, generator=torch.Generator().manual_seed(seed))

        prompts = {"source_prompts": ["a circle", ""], "target_prompts": ["a red circle", "a square", "a cross"]}
        return {"source": draw(2, k), "target": draw(3, 50 + k), "reads": torch.tensor([0, 1, 1]), **prompts}


def make_module(model, *objectives, **options):
    options = {"parts": ("lora",), "rank": 4, "learning_rate": 1e-2, "warmup_steps": 0, **options}
    return DDIMInversionModule(str(model), training=Training(objectives=objectives or ("Velocity",), **options))


def fit(module, data, *callbacks, ckpt_path=None, **settings):
    losses = Losses()
    settings = QUIET | {"max_steps": 6, "num_sanity_val_steps": 0, "callbacks": [losses, *callbacks]} | settings
    trainer = Trainer(**settings | {"enable_checkpointing": bool(callbacks)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, losses.values


@pytest.mark.parametrize(("objective", "data"), [("Velocity", Latents), (IN_CONTEXT, Pairs)])
def test_a_lora_trains_alone_and_resumes_to_the_bit(tiny_model, tmp_path, objective, data):
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    module = make_module(tiny_model, objective)
    trainer, losses = fit(module, data(), keep)
    assert losses[-1] != losses[0] and torch.isfinite(trainer.callback_metrics["val/loss"])
    names = set(module.state_dict())
    assert all(name.startswith("lora.") for name in names)
    assert ("lora.source_mark.weight" in names) == (objective is IN_CONTEXT)
    assert all(parameter.any() for parameter in module.parameters())  # B and the mark have left zero
    frozen = {
        name.replace("base_layer.", ""): weight
        for name, weight in module.transformer.named_parameters()
        if not weight.requires_grad
    }
    untrained = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu").transformer
    assert all(torch.equal(weight, frozen[name]) for name, weight in untrained.named_parameters())
    resumed = make_module(tiny_model, objective)
    _, rest = fit(resumed, data(), ckpt_path=tmp_path / "step=3.ckpt")
    assert rest == losses[3:]
    loaded = DDIMInversionModule.load_from_checkpoint(tmp_path / "step=6.ckpt", weights_only=True)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, module.state_dict()[name])


def test_objectives_add_up_and_are_logged_by_name(tiny_model):
    module = make_module(tiny_model, Velocity(weight=2.0), InContextEditing(num_inference_steps=(4,), weight=0.5))
    trainer, _ = fit(module, Pairs(), max_steps=1, val_check_interval=1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    parts = [logged[f"val/loss/{name}"] for name in ("Velocity", "InContextEditing")]
    assert logged["val/loss"] == pytest.approx(2.0 * parts[0] + 0.5 * parts[1], rel=1e-5)
    again = DDIMInversionModule(**module.hparams)  # objectives given as instances are plain in checkpoints
    assert again.objectives == module.objectives


def test_checkpointing_gradients_changes_no_loss(tiny_model):
    _, losses = fit(make_module(tiny_model, IN_CONTEXT), Pairs())
    _, again = fit(make_module(tiny_model, IN_CONTEXT, gradient_checkpointing=True), Pairs())
    assert again == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 49}, "training.rank: must be at most 48"),
        ({"targets": ("to_z",)}, "training.targets: .* got 'to_z'"),
        ({"objectives": ("Speed",)}, "training.objectives: 'Speed' could not be found"),
        ({"optimizer": "no_such.Optimizer"}, "training.optimizer: .* got 'no_such.Optimizer'"),
    ],
)
def test_what_cannot_train_is_told_in_one_line_before_data_is_prepared(tiny_model, options, message):
    class Expensive(Latents):
        def prepare_data(self):
            raise AssertionError("hours of encoding")

    with pytest.raises(ValueError, match=message):
        fit(DDIMInversionModule(str(tiny_model), training=Training(parts=("lora",), **options)), Expensive())


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        ("target_prompts", "batch: must hold target_prompts, got source, "),
        ("source", "batch: must hold source or source_frames, got target, "),
        ("target", "batch: must hold prompts, got source, "),
    ],
)
def test_a_batch_that_lacks_something_is_told(tiny_model, lacks, message):
    class Lacking(Pairs):
        def make(self, k):
            return {name: value for name, value in super().make(k).items() if name != lacks}

    with pytest.raises(ValueError, match=message):
        fit(make_module(tiny_model, IN_CONTEXT), Lacking())


def test_clips_without_sources_do_not_train_what_reads_them(tiny_model):
    with pytest.raises(ValueError, match="source_latents: must be given"):
        fit(make_module(tiny_model, IN_CONTEXT), Latents())


@pytest.mark.parametrize(
    ("objectives", "bins"),
    [
        (({"class_path": "InContextEditing", "init_args": {"num_inference_steps": [2, 5]}}, "InversionConsistency"), 5),
        (({"class_path": "Velocity", "init_args": {"num_inference_steps": [2]}},), 2),
    ],
)
def test_a_validation_logs_the_loss_by_noise_level(tiny_model, objectives, bins):
    module = make_module(tiny_model, *objectives)
    trainer = Trainer(**QUIET)
    logged = trainer.validate(module, Pairs(), verbose=False)[0]
    names = [f"val/loss/t{start:03d}-{start + 199:03d}" for start in range(0, 1000, 200)]
    found = [name for name in names if name in logged]
    assert found == (names if bins == 5 else [names[2], names[4]])  # at 499 and 999
    assert len({logged[name] for name in found}) == bins
    assert trainer.validate(module, Pairs(), verbose=False)[0] == logged
    samples, seed = make_samples(Pairs().make(100), None), make_clip_seed(0, "validation/0/0")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        total, _ = compute_objectives(module.engine, module.objectives, samples, generator)
        last = compute_by_level(module.engine, module.objectives, samples, seed)["t800-999"]
    assert logged["val/loss"] == pytest.approx(float(total), rel=1e-5)
    assert logged[names[4]] == pytest.approx(float(last), rel=1e-5)

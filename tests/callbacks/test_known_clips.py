"""Edits of validation batches: the training does not notice, and the best checkpoint is that of the best edits."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from ddim_lightning import DDIMInversionModule, InversionCallback, Runtime, SampleSheets, Schedule, Training
from ddim_lightning.callbacks.known_clips import take_clips
from ddim_lightning.engine.clip_job import make_clip_seed
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.metrics.latents import relative_l2
from ddim_lightning.models.loading import load_components
from ddim_lightning.models.vae import quantize
from ddim_lightning.types import EditRequest

SIZE = (2, 8, 8, 8)  # of a clip's latents: f, c, h, w
STEPS = Schedule(num_inference_steps=2)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
SOURCES, TARGETS = ["a red circle", "a cross"], ["a blue circle", "a green circle", "a star"]


def make_batch(seed, kind="pairs"):
    """Two sources, the first of which has two targets; or their frames; or clips alone."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "clips":
        return {"latents": torch.randn(2, *SIZE, generator=generator), "prompts": SOURCES}
    texts = {"reads": torch.tensor([0, 0, 1]), "source_prompts": SOURCES, "target_prompts": TARGETS}
    if kind == "pairs":
        source, target = (torch.randn(count, *SIZE, generator=generator) for count in (2, 3))
        return texts | {"source": source, "target": target}
    source, target = (
        torch.randint(0, 256, (count, 5, 3, 32, 32), generator=generator, dtype=torch.uint8) for count in (2, 3)
    )
    return texts | {"source_frames": source, "target_frames": target}


class Pairs(LightningDataModule):
    def __init__(self, kind="pairs"):
        super().__init__()
        self.kind = kind

    def train_dataloader(self):
        return DataLoader([make_batch(step, self.kind) for step in range(8)], batch_size=None)

    def val_dataloader(self):
        return DataLoader([make_batch(50, self.kind), make_batch(51, self.kind)], batch_size=None)


def make_module(model, objective="InContextEditing", editor="Denoise", **more):
    training = {"parts": ("lora",), "rank": 4, "learning_rate": 3e-2, "warmup_steps": 0} | more
    options = Training(objectives=(objective,), **training)
    return DDIMInversionModule(
        str(model), runtime=Runtime(dtype="float32"), training=options, editor=editor, guidance_scale=2.0
    )


class State(Callback):
    """Notes the losses and, before each batch, what a guest might have left."""

    def __init__(self):
        self.losses, self.seen = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(float(outputs["loss"]))

    def on_train_batch_start(self, trainer, module, *_):
        arrays = np.random.get_state()  # noqa: NPY002
        transformer = module.transformer
        layers = [
            (name, layer.training, len(layer._forward_hooks), len(layer._forward_pre_hooks))
            for part in (module, transformer, module.vae)
            for name, layer in part.named_modules()
        ]
        weights = [(name, p.requires_grad, p.grad is None) for name, p in transformer.named_parameters()]
        processors = [block.attn1.processor for block in transformer.transformer_blocks]
        kinds = [type(processor) for processor in processors]
        states = torch.get_rng_state().tolist(), arrays[1].tolist(), arrays[2:], random.getstate()
        self.seen.append((states, layers, weights, kinds, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))


def run(verb, module, folder, *callbacks, kind="pairs", **more):
    seed_everything(5, verbose=False)
    options = QUIET | {"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None}
    options |= {"default_root_dir": folder, "enable_checkpointing": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(**options | more, callbacks=list(callbacks))
        getattr(trainer, verb)(module, Pairs(kind))
    return trainer


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({"editor": "InContextEdit"}, "32-true"),
        ({"objective": "Velocity", "parts": ("transformer", "text_encoder")}, "bf16-mixed"),
    ],
)
def test_a_training_does_not_notice_that_its_edits_are_shown(tiny_model, tmp_path, options, precision):
    seen = []
    for name in ("without", "with"):
        module, state = make_module(tiny_model, **options), State()
        guests = [InversionCallback(2, schedule=STEPS), SampleSheets(clips=1, num_inference_steps=2)]
        run("fit", module, tmp_path / name, state, *guests * (name == "with"), precision=precision)
        weights = {key: value.tolist() for key, value in module.state_dict().items()}
        seen.append((state.losses, state.seen, weights))
    assert len(seen[0][0]) == 4
    assert seen[0] == seen[1]
    for folder in ("inversions", "sheets"):
        sheets = [path.name for path in sorted((tmp_path / "with" / folder).iterdir())]
        assert sheets == ["step-000002.png", "step-000004.png"]


def measure(module, batch, count):
    """What the weights of a module make of the first pairs, by its engine's own calls."""
    engine, edits, errors = module.engine, [], []
    for source in dict.fromkeys(batch["reads"][:count].tolist()):
        inversion = engine.invert(batch["source"][source : source + 1])
        errors.append(relative_l2(engine.reconstruct(inversion), inversion.levels[-1]))
        for k in (k for k in range(count) if batch["reads"][k] == source):
            request = EditRequest(TARGETS[k], source_prompt=SOURCES[source], guidance_scale=2.0)
            edited = engine.edit(inversion, request, seed=make_clip_seed(0, f"pair-{source}"))
            made, truth = (quantize(engine.decode(x)[0]) / 255 for x in (edited, batch["target"][k : k + 1]))
            edits.append(psnr(made, truth))
    return sum(edits) / len(edits), sum(errors) / len(errors)


def test_the_best_checkpoint_is_that_of_the_best_edits(tiny_model, tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="val/edit_psnr", mode="max", filename="{step}")
    watch = InversionCallback(3, schedule=STEPS)
    logger = CSVLogger(tmp_path, name="logs")
    module = make_module(tiny_model)
    trainer = run("fit", module, tmp_path, keep, watch, logger=logger, max_steps=6, enable_checkpointing=True)
    with open(logger.experiment.metrics_file_path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/edit_psnr"]]
    logged = {int(row["step"]) + 1: float(row["val/edit_psnr"]) for row in rows}
    assert sorted(logged) == [2, 4, 6]
    assert all(row["val/loss"] and row["val/round_trip"] for row in rows)
    best = max(logged, key=logged.get)
    assert keep.best_model_path.endswith(f"step={best}.ckpt")

    again = DDIMInversionModule.load_from_checkpoint(keep.best_model_path, weights_only=True, schedule=STEPS)
    edit_psnr, round_trip = measure(again, make_batch(50), 3)
    assert float(keep.best_model_score) == pytest.approx(edit_psnr, rel=1e-5)
    (row,) = [row for row in rows if int(row["step"]) + 1 == best]
    assert float(row["val/round_trip"]) == pytest.approx(round_trip, rel=1e-4)
    assert float(trainer.callback_metrics["val/edit_psnr"]) == pytest.approx(logged[6], rel=1e-5)


def test_a_training_stops_when_its_edits_stop_getting_better(tiny_model, tmp_path):
    stop = EarlyStopping("val/edit_psnr", mode="max", min_delta=100.0, patience=1)
    trainer = run("fit", make_module(tiny_model), tmp_path, stop, InversionCallback(1, schedule=STEPS), max_steps=8)
    assert trainer.global_step == 4


def test_averaged_weights_are_evaluated_where_there_are_some(tiny_model, tmp_path):
    averaging = EMAWeightAveraging(decay=0.6)
    module, watch = make_module(tiny_model), InversionCallback(1, schedule=STEPS)
    trainer = run("fit", module, tmp_path, watch, averaging, max_steps=2)
    module.load_state_dict(averaging._average_model.module.state_dict())
    module.schedule = STEPS
    module.scheduler = module.scheduler  # takes the schedule
    wanted, _ = measure(module, make_batch(50), 1)
    assert float(trainer.callback_metrics["val/edit_psnr"]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["pairs", "frames", "clips"])
def test_validation_alone_measures_what_the_batch_knows(tiny_model, tmp_path, kind):
    module = make_module(tiny_model, "Velocity")
    watch = InversionCallback(2, schedule=STEPS, reconstruct=kind != "frames")
    logged = run("validate", module, tmp_path, watch, kind=kind).logged_metrics
    assert ("val/edit_psnr" in logged, "val/edit_psnr_vs_source" in logged) == (kind != "clips",) * 2
    assert ("val/round_trip" in logged) == (kind != "frames")
    assert [path.name for path in (tmp_path / "inversions").iterdir()] == ["step-000000.png"]
    known = take_clips(make_batch(50, kind), 2, module.engine)
    assert [len(one.truths) for one in known] == ([0, 0] if kind == "clips" else [2])
    assert [one.clip.source_prompt for one in known] == (SOURCES if kind == "clips" else SOURCES[:1])
    if kind == "frames":
        assert torch.equal(known[0].truths[1], make_batch(50, kind)["target_frames"][1])


class Told(Callback):
    """Writes what callbacks of this process can go by."""

    def on_validation_end(self, trainer, *_):
        found = trainer.callback_metrics.get("val/edit_psnr", "nothing")
        Path(trainer.log_dir, f"{trainer.global_rank}-{trainer.global_step}.txt").write_text(str(found))


def validate_on_two(tiny_model, tmp_path):
    logger, watch = CSVLogger(tmp_path, name="logs"), InversionCallback(1, schedule=STEPS)
    keep = ModelCheckpoint(tmp_path, monitor="val/edit_psnr", mode="max", filename="best")
    more = {"devices": 2, "strategy": "ddp_fork", "enable_checkpointing": True, "max_steps": 2}
    run("fit", make_module(tiny_model), tmp_path, keep, watch, Told(), logger=logger, num_sanity_val_steps=0, **more)


@pytest.mark.slow
def test_of_two_processes_both_know_what_the_first_found(tiny_model, tmp_path):
    # In a process of its own: after any backward pass autograd has threads, and refuses to be forked.
    code = (
        "import pathlib, runpy, sys; script, *paths = sys.argv[1:];"
        "runpy.run_path(script)['validate_on_two'](*map(pathlib.Path, paths))"
    )
    subprocess.run([sys.executable, "-c", code, __file__, str(tiny_model), str(tmp_path)], check=True)
    folder = tmp_path / "logs" / "version_0"
    assert [path.name for path in (folder / "inversions").iterdir()] == ["step-000002.png"]
    one, other = ((folder / f"{rank}-2.txt").read_text() for rank in (0, 1))
    assert one == other != "nothing"
    assert (tmp_path / "best.ckpt").is_file()


class Foreign(LightningModule):
    """Somebody's own training, whose batches are pairs."""

    def __init__(self, model):
        super().__init__()
        self.transformer = load_components(str(model), device=torch.device("cpu"), dtype=torch.float32).transformer

    def validation_step(self, batch, batch_idx):
        pass


def test_a_foreign_module_has_its_edits_shown_too(tiny_model, tmp_path):
    watch = InversionCallback(2, str(tiny_model), schedule=STEPS, editor="Denoise", guidance_scale=2.0)
    logged = run("validate", Foreign(tiny_model), tmp_path, watch).logged_metrics
    own = run("validate", make_module(tiny_model), tmp_path / "own", InversionCallback(2, schedule=STEPS))
    for name in ("val/edit_psnr", "val/round_trip"):
        assert float(logged[name]) == pytest.approx(float(own.logged_metrics[name]), rel=1e-3)


def test_what_cannot_be_evaluated_is_refused_by_name(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"^model: .*Foreign"):
        run("validate", Foreign(tiny_model), tmp_path, InversionCallback(2))
    for name, options in (("model", {"model": "tiny"}), ("inversion_prompt", {"inversion_prompt": None})):
        with pytest.raises(ValueError, match=rf"^{name}: .*DDIMInversionModule"):
            run("validate", make_module(tiny_model), tmp_path, InversionCallback(2, **options))
    module = make_module(tiny_model)
    module.load("cpu")
    for batch, name in (({"frames": torch.zeros(1)}, "prompts"), ([torch.zeros(1)], "list")):
        with pytest.raises(ValueError, match=rf"^batch: .*{name}"):
            take_clips(batch, 1, module.engine)

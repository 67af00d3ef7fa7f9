"""Sheets while a model trains: they show the averaged weights, and the training does not notice them."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch.utils.data import DataLoader

from ddim_lightning import DDIMInversionModule, Runtime, SampleSheets, Training
from ddim_lightning.data.streams import make_generator
from ddim_lightning.diffusion.sampling import sample
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.models.vae import quantize
from ddim_lightning.report.sheet import Row, make_sheet
from ddim_lightning.tiny.autoencoder import AutoencoderModule

CAPTIONS = ["a red circle", "a cross", "a blue square"]
SIZE = (2, 8, 4, 6)  # of a clip's latents: f, c, h, w
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
SHEETS = {"clips": 2, "num_inference_steps": 2}


class Batches(LightningDataModule):
    """Batches of training that depend on the step alone, and two of validation, of three clips and of one."""

    def __init__(self, kind="latents"):
        super().__init__()
        self.kind = kind

    def make_batch(self, seed, captions):
        generator = torch.Generator().manual_seed(seed)
        if self.kind == "latents":
            return {"latents": torch.randn(len(captions), *SIZE, generator=generator), "prompts": list(captions)}
        frames = torch.randint(0, 256, (len(captions), 9, 3, 16, 24), generator=generator, dtype=torch.uint8)
        return {"frames": frames, "prompts": list(captions)}

    def train_dataloader(self):
        world, rank, done = self.trainer.world_size, self.trainer.global_rank, self.trainer.global_step
        batches = [self.make_batch(step * world + rank, CAPTIONS[:2]) for step in range(done, done + 12)]
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self):
        return DataLoader([self.make_batch(50, CAPTIONS), self.make_batch(51, ["a star"])], batch_size=None)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *rest):
        self.values.append(float(outputs["loss"]))


def make_module(model):
    training = {"parts": ("transformer", "text_encoder"), "learning_rate": 3e-2, "warmup_steps": 0}
    return DDIMInversionModule(str(model), runtime=Runtime(dtype="float32"), training=Training(**training))


def make_autoencoder():
    torch.manual_seed(0)
    return AutoencoderModule((4, 6, 8), 5, norm_num_groups=2, warmup_steps=1)


def fit(
    module,
    folder,
    *callbacks,
    kind="latents",
    ckpt=None,
    **more,
):
    """Train six steps of which each is kept, with validation at every third; the losses."""
    seed_everything(3, verbose=False)
    losses = Losses()
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options = QUIET | {"max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None, "logger": False}
    options |= {"default_root_dir": folder, "num_sanity_val_steps": 1, "callbacks": [losses, *callbacks, keep]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(**options | more).fit(module, Batches(kind), ckpt_path=ckpt)
    return losses.values


def list_sheets(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


@torch.no_grad()
def draw(module, step, size=SIZE):
    """The pixels of the sheet of a module's weights as they are."""
    module.engine.prompts.clear_cache()
    rows = []
    for k, caption in enumerate(CAPTIONS[:2]):
        noise = torch.randn(1, *size, generator=make_generator(0, "noise", k))
        latents = sample(
            module.engine.denoiser, noise, caption, make_noise_schedule(module.components.scheduler, 2), 3.0
        )
        rows.append(Row(f"clip {k}", quantize(module.engine.decode(latents)[0]), caption))
    subtitle = "2 steps from noise, guidance 3, seed 0"
    return make_sheet(rows, title=f"step {step}", subtitle=subtitle, fps=Fraction(8)).tobytes()


def draw_checkpoint(checkpoint, step, weights="state_dict"):
    module = DDIMInversionModule.load_from_checkpoint(checkpoint, weights_only=True)
    module.load_state_dict(torch.load(checkpoint, weights_only=True)[weights])
    return draw(module, step)


def read_pixels(path):
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.parametrize("order", [1, -1])
def test_sheets_show_the_averaged_weights_whatever_the_order_of_callbacks(tiny_model, tmp_path, order):
    callbacks = [SampleSheets(**SHEETS), EMAWeightAveraging(decay=0.6)][::order]
    module = make_module(tiny_model)
    fit(module, tmp_path, *callbacks, max_steps=5)
    assert list_sheets(tmp_path) == ["step-000003.png", "step-000005.png"]  # of a validation, and of the end
    for step in (3, 5):
        pixels = read_pixels(tmp_path / "sheets" / f"step-{step:06d}.png")
        checkpoint = tmp_path / f"step={step}.ckpt"
        assert pixels == draw_checkpoint(checkpoint, step)
        assert pixels != draw_checkpoint(checkpoint, step, "current_model_state")
    assert draw(module, 5) == pixels  # the end left the averaged weights where the callback wants them


def test_a_text_encoder_that_trains_leaves_no_embeddings_behind(tiny_model, tmp_path):
    module = make_module(tiny_model)
    module.load("cpu")

    class Looking(Callback):
        cached = 0

        def on_train_batch_start(self, *_):
            self.cached += sum(prompt in module.engine.prompts._embeds for prompt in ["", *CAPTIONS])

    module.encode_prompts(CAPTIONS)  # of the weights before the training
    looking = Looking()
    fit(module, tmp_path, SampleSheets(**SHEETS), looking, max_steps=4)
    assert read_pixels(tmp_path / "sheets" / "step-000003.png") == draw_checkpoint(tmp_path / "step=3.ckpt", 3)
    assert looking.cached == 3 * len(CAPTIONS)  # in the three steps before the first sheet


@pytest.mark.parametrize(("kind", "precision"), [("latents", "bf16-mixed"), ("frames", "32-true")])
def test_the_training_does_not_notice(tiny_model, tmp_path, kind, precision):
    seen = []
    for name in ("without", "with"):
        module = make_module(tiny_model) if kind == "latents" else make_autoencoder()
        callbacks = [EMAWeightAveraging(decay=0.6)]
        callbacks += [SampleSheets(**SHEETS)] if name == "with" else []
        losses = fit(module, tmp_path / name, *callbacks, kind=kind, precision=precision, max_steps=5)
        arrays = np.random.get_state()  # noqa: NPY002
        state = [torch.get_rng_state().tolist(), arrays[1].tolist(), arrays[2:], random.getstate()]
        layers = [(layer.training, [p.requires_grad for p in layer.parameters()]) for layer in module.modules()]
        gradients = [p.grad is None for p in module.parameters()]
        weights = {key: value.tolist() for key, value in module.state_dict().items()}
        seen.append((losses, state, layers, gradients, weights))
    assert list_sheets(tmp_path / "without") == []
    assert list_sheets(tmp_path / "with") == ["step-000003.png", "step-000005.png"]
    assert seen[0] == seen[1]


def test_a_resumed_training_goes_on_as_if_unbroken_and_draws_the_same_sheets(tiny_model, tmp_path):
    def run(name, ckpt=None):
        callbacks = EMAWeightAveraging(decay=0.6), SampleSheets(**SHEETS, every_n_steps=4)
        return fit(make_module(tiny_model), tmp_path / name, *callbacks, ckpt=ckpt, val_check_interval=2)

    losses = run("unbroken")
    assert list_sheets(tmp_path / "unbroken") == ["step-000004.png", "step-000006.png"]
    for step in (2, 3):
        assert run(f"from-{step}", tmp_path / "unbroken" / f"step={step}.ckpt") == losses[step:]
        assert list_sheets(tmp_path / f"from-{step}") == ["step-000004.png", "step-000006.png"]
        for path in (tmp_path / f"from-{step}" / "sheets").iterdir():
            assert path.read_bytes() == (tmp_path / "unbroken" / "sheets" / path.name).read_bytes()


def train_on_two(tiny_model, tmp_path):
    settings = {"devices": 2, "strategy": "ddp_fork", "precision": "bf16-mixed", "max_steps": 4}
    logger = CSVLogger(tmp_path, name="logs")
    callbacks = SampleSheets(**SHEETS), EMAWeightAveraging(decay=0.6)
    fit(make_module(tiny_model), tmp_path, *callbacks, logger=logger, use_distributed_sampler=False, **settings)


def test_of_two_processes_the_first_draws(tiny_model, tmp_path):
    # In a process of its own: after any backward pass autograd has threads, and refuses to be forked.
    code = (
        "import pathlib, runpy, sys; script, *paths = sys.argv[1:];"
        "runpy.run_path(script)['train_on_two'](*map(pathlib.Path, paths))"
    )
    subprocess.run([sys.executable, "-c", code, __file__, str(tiny_model), str(tmp_path)], check=True)
    folder = tmp_path / "logs" / "version_0" / "sheets"
    assert list_sheets(tmp_path) == list_sheets(folder) == ["step-000003.png", "step-000004.png"]
    assert read_pixels(folder / "step-000003.png") != read_pixels(folder / "step-000004.png")


def test_round_trips_stand_below_their_clips_in_the_logger_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = make_autoencoder()
    fit(module, tmp_path, SampleSheets(clips=2), kind="frames", logger=TensorBoardLogger(tmp_path, name="logs"))
    folder = tmp_path / "logs" / "version_0"
    assert list_sheets(folder) == ["step-000003.png", "step-000006.png"]
    pixels = read_pixels(folder / "sheets" / "step-000006.png")
    clips = Batches("frames").make_batch(50, CAPTIONS)["frames"][:2]
    rows = []
    with torch.no_grad():
        for k, clip in enumerate(clips):
            decoded = module.eval()(clips[k : k + 1])[0]
            decibels = -10 * float((decoded.double() - clip.double()).div(255).square().mean().log10())
            rows += [Row(f"clip {k}", clip, "source"), Row(f"clip {k}", decoded, "round trip", f"{decibels:.1f} dB")]
    subtitle = "source and round trip"
    assert pixels == make_sheet(rows, title="step 6", subtitle=subtitle, fps=Fraction(8)).tobytes()
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Images("sheet")] == [3, 6]
    (tmp_path / "logged.png").write_bytes(events.Images("sheet")[1].encoded_image_string)
    assert read_pixels(tmp_path / "logged.png") == pixels


def test_validation_alone_draws_the_weights_it_is_given(tiny_model, tmp_path):
    module = make_module(tiny_model)
    trainer = Trainer(**QUIET, logger=False, default_root_dir=tmp_path, callbacks=[SampleSheets(**SHEETS)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.validate(module, Batches("frames"), verbose=False)
    assert list_sheets(tmp_path) == ["step-000000.png"]
    assert read_pixels(tmp_path / "sheets" / "step-000000.png") == draw(module, 0, (3, *SIZE[1:]))  # of 9 frames


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clips": 0}, "clips: must be at least 1, got 0"),
        ({"every_n_steps": 0}, "every_n_steps: must be at least 1, got 0"),
        ({"num_inference_steps": -2}, "num_inference_steps: must be at least 1, got -2"),
        ({"guidance_scale": float("inf")}, "guidance_scale: must be finite and not negative, got inf"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SampleSheets(**options)


def test_a_foreign_module_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"SampleSheets: must watch .* got BoringModel"):
        fit(BoringModel(), tmp_path, SampleSheets())

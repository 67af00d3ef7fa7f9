"""The shipped training configs repeat themselves bit for bit, and go on exactly where they were stopped.

Everything is as shipped but the number of steps, how often losses are logged and checkpoints kept, and how many scenes
there are. The first losses are compared in every run of the tests, in small batches; the first fifty, as shipped, with

    pytest -m slow tests/test_training_configs.py
"""

from __future__ import annotations

import csv

import pytest
import torch
import yaml

from ddim_lightning.cli.main import main
from ddim_lightning.engine.shipped import get_config_path
from ddim_lightning.tiny.autoencoder import AutoencoderModule
from ddim_lightning.tiny.training import write_untrained_tiny

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
FEW = {
    "tiny_vae": ["--data.val_clips", "1"],
    "tiny_vae_decoder": ["--data.val_clips", "1"],
    "tiny_transformer": ["--data.scenes", "12", "--data.val_scenes", "1"],
}
SMALL = {"tiny_vae": [], "tiny_vae_decoder": [], "tiny_transformer": ["--data.batch_size", "6"]}
"""What spares the first losses a batch of 32."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder that the last two trainings start from, with a VAE of random weights."""
    folder = tmp_path_factory.mktemp("start")
    options = yaml.safe_load(get_config_path("tiny_vae").read_text("utf-8"))["model"]["init_args"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = AutoencoderModule(**options)
    clips = torch.randint(0, 256, (1, 9, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    module.save_pretrained(folder / "vae", clips, torch.float32)
    return write_untrained_tiny(folder / "tiny_start", folder / "vae")


def fit(config, folder, start, *flags, steps):
    """Run a shipped config in a folder of its own, and keep a checkpoint in the middle; the losses."""
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "tiny_start").symlink_to(start)
    run = ["--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    run += ["--trainer.log_every_n_steps", "1", f"--trainer.callbacks.every_n_train_steps={steps // 2}"]
    run += ["--trainer.callbacks.filename={step}", "--trainer.callbacks.save_top_k=-1", *QUIET, *FEW[config]]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", config, *run, *flags]) == 0
    with (folder / "runs" / config / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def assert_equal(one, two):
    """Compare nested values and tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list | tuple):
        for part, other in zip(one, two, strict=True):
            assert_equal(part, other)
    else:
        assert one == two


def check(config, folder, start, *flags, steps):
    """Train twice, and once more from the middle of the first, with a validation on the way."""
    middle = folder / "one" / "runs" / config / f"step={steps // 2}.ckpt"
    losses, again = (fit(config, folder / name, start, *flags, steps=steps) for name in ("one", "two"))
    flags += ("--ckpt_path", str(middle), "--trainer.val_check_interval", str(steps // 2))
    resumed = fit(config, folder / "resumed", start, *flags, steps=steps)
    assert len(set(losses)) == steps
    assert again == losses
    assert resumed == losses[steps // 2 :]
    ends = [
        torch.load(folder / name / "runs" / config / f"step={steps}.ckpt", weights_only=True)
        for name in ("one", "two", "resumed")
    ]
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert_equal(ends[0][part], ends[1][part])
        assert_equal(ends[0][part], ends[2][part])
    sheets = folder / "resumed" / "runs" / config / "logs" / "version_0" / "sheets"
    assert f"step-{steps:06d}.png" in {path.name for path in sheets.iterdir()}


@pytest.mark.parametrize("config", FEW)
def test_the_first_losses_repeat_and_resuming_changes_nothing(config, tmp_path, start):
    check(config, tmp_path, start, *SMALL[config], steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("config", FEW)
def test_the_first_fifty_losses_repeat_and_resuming_changes_nothing(config, tmp_path, start):
    check(config, tmp_path, start, steps=50)

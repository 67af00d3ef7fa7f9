"""The whole training of the tiny model, its shipped configs and commands, at a size of seconds."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import CogVideoXPipeline
from safetensors.torch import load_file

from ddim_lightning import DDIMInversionModule
from ddim_lightning.cli.main import main
from ddim_lightning.data.streams import make_generator
from ddim_lightning.models.loading import load_components
from ddim_lightning.models.vae import encode_video
from ddim_lightning.tiny import asset as tiny_asset
from ddim_lightning.tiny.shapes import render, sample_scene
from ddim_lightning.tiny.training import write_trained_tiny, write_untrained_tiny
from tests.adapters import make_tensors

QUICK = ["--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "2"]
QUICK += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
VAE = ["--data.batch_size", "1", "--data.crop", "16", "--data.full_every", "0", "--data.val_clips", "1"]
LATENTS = ["--data.scenes", "5", "--data.val_scenes", "2", "--data.batch_size", "3"]


def fit(config, folder, *flags, steps=2):
    """Run a shipped config in its own folder under ``runs``; the last checkpoint."""
    run = folder / "runs" / config
    assert main(["fit", "--config", config, *QUICK, "--trainer.max_steps", str(steps), *flags]) == 0
    return run / "last.ckpt"


def read_step(checkpoint):
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A folder in which the commands of the configs' headers were run."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tiny_asset, "_MEASURED", 2)
        often = ["--trainer.callbacks.every_n_train_steps=1"]  # of the last callback, the one that saves
        vae = fit("tiny_vae", folder, *VAE, *often)
        assert tiny_asset.main(["start", "--vae", str(vae), "--output", "runs/tiny_start", "--seed", "3"]) == 0
        fit("tiny_vae_decoder", folder, *VAE, *often)
        transformer = fit("tiny_transformer", folder, *LATENTS, *often)
        assert read_step(transformer) == 2
        fit("tiny_transformer", folder, *LATENTS, *often, "--ckpt_path", str(transformer), steps=3)
        export = ["export", "--start", "runs/tiny_start", "--output", "asset"]
        for name in ("tiny_vae_decoder", "tiny_transformer"):
            export += ["--checkpoint", f"runs/{name}/last.ckpt"]
        assert tiny_asset.main(export) == 0
    return folder


def read_parts(folder):
    names = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    return {part: load_file(folder / part / f"{name}.safetensors") for part, name in names.items()}


def read_averages(checkpoint):
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]


def test_training_resumes_where_it_stopped(training):
    assert read_step(training / "runs" / "tiny_transformer" / "last.ckpt") == 3


def test_the_start_has_unit_latents_and_a_transformer_that_predicts_zero(training):
    start = load_components(str(training / "runs" / "tiny_start"), device=torch.device("cpu"), dtype=torch.float32)
    frames = torch.stack([render(sample_scene(make_generator(3, "val", i))) for i in range(2)])
    with torch.no_grad():
        latents = encode_video(start.vae, frames)
        velocity = start.transformer(latents, torch.randn(2, 16, 64), torch.tensor([500, 20])).sample
    assert latents.square().mean() == pytest.approx(1.0, abs=1e-3)
    assert latents.shape == velocity.shape == (2, 3, 8, 16, 16)
    assert not velocity.any()


def test_the_seed_decides_the_start_and_the_global_state_stays(training, tmp_path):
    start = training / "runs" / "tiny_start"
    before = torch.get_rng_state()
    again, other = (read_parts(write_untrained_tiny(tmp_path / str(s), start / "vae", seed=s)) for s in (3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    first = read_parts(start)
    for part in first:
        assert all(torch.equal(first[part][name], again[part][name]) for name in first[part])
    assert all(torch.equal(first["vae"][name], other["vae"][name]) for name in first["vae"])
    for part, name in (("transformer", "patch_embed.proj.weight"), ("text_encoder", "shared.weight")):
        assert not torch.equal(first[part][name], other[part][name])


def test_the_asset_holds_the_averaged_weights_in_half_precision(training):
    asset, start = read_parts(training / "asset"), read_parts(training / "runs" / "tiny_start")
    wanted = {"vae": "tiny_vae_decoder", "transformer": "tiny_transformer", "text_encoder": "tiny_transformer"}
    for part, run in wanted.items():
        averages = read_averages(training / "runs" / run / "last.ckpt")
        dtype = torch.float32 if part == "text_encoder" else torch.float16
        for name, weight in asset[part].items():
            frozen = part == "vae" and name.startswith("encoder.")
            expected = start[part][name] if frozen else averages[f"{part}.{name}"]
            assert weight.dtype == dtype
            assert torch.equal(weight, expected.to(dtype)), name
        assert not all(torch.equal(weight, start[part][name].to(dtype)) for name, weight in asset[part].items())


def test_the_asset_keeps_the_configs_of_the_start(training):
    asset, start = training / "asset", training / "runs" / "tiny_start"
    names = {path.relative_to(start) for path in start.rglob("*.json")}
    assert {path.relative_to(asset) for path in asset.rglob("*.json")} == names
    for name in names:
        ours, theirs = (json.loads((folder / name).read_text("utf-8")) for folder in (asset, start))
        assert ours == theirs, name


def test_the_asset_is_small_and_names_no_path_of_this_machine(training):
    files = [path for path in (training / "asset").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert not any(str(training) in path.read_text("utf-8") for path in files if path.suffix == ".json")


def test_plain_diffusers_makes_a_video_with_the_asset(training):
    pipeline = CogVideoXPipeline.from_pretrained(training / "asset", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        "a red circle moving right on a blue background",
        num_frames=9,
        num_inference_steps=2,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames
    assert video.shape == (1, 9, 3, 64, 64)
    assert video.isfinite().all()


def test_a_vae_with_another_encoder_is_refused(training, tmp_path):
    weights = read_averages(training / "runs" / "tiny_vae_decoder" / "last.ckpt")
    weights["vae.encoder.conv_in.conv.weight"] *= 1.1
    torch.save({"state_dict": weights}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"encoder must be that of start, encoder\.conv_in\.conv\.weight differs"):
        write_trained_tiny(tmp_path / "asset", training / "runs" / "tiny_start", [tmp_path / "other.ckpt"])


def test_a_checkpoint_of_something_else_is_refused(training, tmp_path):
    torch.save({"state_dict": {"net.weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="checkpoints: must hold weights of vae, transformer, text_encoder, got "):
        write_trained_tiny(tmp_path / "asset", training / "runs" / "tiny_start", [tmp_path / "other.ckpt"])


def test_a_checkpoint_becomes_an_adapter_by_a_command(tiny_model, tmp_path, capsys):
    module = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu", editor="KVInjection")
    tensors = make_tensors(module.transformer)
    options = dict(module.hparams) | {"training": {"parts": ["lora"], "rank": 3, "alpha": 6.0}}
    state = {f"lora.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"state_dict": state, "hyper_parameters": options}, tmp_path / "last.ckpt")
    path = tmp_path / "made" / "edit.safetensors"
    words = ["adapter", "--checkpoint", str(tmp_path / "last.ckpt"), "--output", str(path)]
    assert tiny_asset.main([*words, "--edits"]) == 0
    assert str(path) in capsys.readouterr().out
    adapted = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu", lora=str(path))
    assert adapted.editor == module.editor and adapted.engine.adapter is not None
    assert tiny_asset.main(words) == 0
    merged = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu", lora=str(path))
    assert type(merged.editor).__name__ == "FlowEdit" and merged.engine.adapter is None

"""What `outputs.metrics` names is measured of every video of a run, and lands in its record and on its page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from ddim_lightning.engine.clip_job import ClipJob
from ddim_lightning.engine.config import Outputs
from ddim_lightning.engine.fingerprint import make_clip_fingerprint
from ddim_lightning.engine.measuring import make_measurer
from ddim_lightning.output.clip_folder import write_clip
from ddim_lightning.report.numbers import describe_number, list_numbers
from ddim_lightning.types import Clip
from tests.metrics.networks import write_clip as write_clip_model
from tests.metrics.networks import write_squeeze
from tests.modules import make_module

NAMES = ("psnr", "ssim", "lpips", "five_mse", "clip_text", "clip_frames")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {"lpips_weights": str(write_squeeze(folder)), "clip_model": str(write_clip_model(folder))}


@pytest.fixture(scope="module")
def module(tiny_model, networks):
    made = make_module(str(tiny_model), num_inference_steps=2, metrics=NAMES, **networks)
    made.load("cpu")
    return made


@pytest.fixture(scope="module")
def clip():
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(0, 256, (9, 3, 24, 40), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(9, 24, 40, dtype=torch.bool)
    mask[:, 4:12, 6:20] = True
    return Clip(id="clip", frames=frames, prompts=("a dog",), mask=mask)


@pytest.fixture(scope="module")
def result(module, clip):
    return module.predict_step(clip, 0)


def test_numbers_stand_beside_those_that_are_always_there(result, clip):
    (edit,) = result.edits
    sides = {f"{name}{side}_vs_source" for name in ("psnr", "ssim", "lpips") for side in ("", "_inside", "_outside")}
    parts = {"mse_edit_part_vs_source", "mse_unedit_part_vs_source"}
    assert set(edit.metrics) == sides | parts | {"clip_text", "clip_frames", "clip_frames_pairs"}
    # The clip has no source prompt, which the reconstruction would show.
    assert set(result.metrics["reconstruction"]) >= {"psnr", "psnr_vs_vae", "psnr_inside", "lpips", "clip_frames"}
    assert "clip_text" not in result.metrics["reconstruction"]
    outside = ~clip.mask[:, None].expand(-1, 3, -1, -1)
    rounded = peak_signal_noise_ratio(edit.frames[outside] / 255, clip.frames[outside] / 255, data_range=1.0)
    assert edit.metrics["psnr_outside_vs_source"] == pytest.approx(float(rounded), abs=0.01)  # measured before rounding


def test_videos_are_the_same_bytes_and_nothing_is_measured_unless_asked(module, result, clip):
    outputs = replace(module.outputs, metrics=(), lpips_weights=None, clip_model=None)
    assert make_measurer(outputs, torch.device("cpu")) is None
    plain = ClipJob(module.engine, clip, result.seed, module.guidance_scale, outputs).run()
    assert torch.equal(plain.edits[0].frames, result.edits[0].frames)
    assert set(plain.edits[0].metrics) == {"psnr_vs_source", "ssim_vs_source"}
    for name, value in plain.edits[0].metrics.items():
        assert result.edits[0].metrics[name] == value


def test_they_are_in_the_record_and_have_names_for_a_person(result, tmp_path):
    record = write_clip(result, tmp_path, sheets=False)
    numbers = list_numbers(record)
    key = "metrics.edits.0.lpips_outside_vs_source"
    assert numbers[key] == result.edits[0].metrics["lpips_outside_vs_source"]
    assert describe_number(key).name == "Edit 00, LPIPS outside to source"
    assert json.loads((tmp_path / "clip" / "result.json").read_text("utf-8"))["metrics"] == record["metrics"]
    assert tuple(record["settings"]["outputs"]["metrics"]) == NAMES


def test_a_measure_without_its_network_stops_the_run_before_the_model_is_loaded(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    module = make_module(str(tiny_model), metrics=["lpips"])
    with pytest.raises(ValueError, match="metrics: lpips cannot be measured: lpips_weights: "):
        module.load("cpu")
    assert module._engine is None


def test_a_measure_that_fails_is_a_warning_and_costs_nothing(module, result, clip, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of something")

    measurer = make_measurer(module.outputs, torch.device("cpu"))
    monkeypatch.setattr(measurer.parts["lpips_weights"], "make_map", fail)
    made = ClipJob(module.engine, clip, result.seed, module.guidance_scale, module.outputs, measurer=measurer).run()
    assert made.status == "done"
    assert made.warnings.count("metrics: lpips: out of something") == 1
    assert "lpips_vs_source" not in made.edits[0].metrics and "clip_text" in made.edits[0].metrics


def test_what_a_clip_does_not_bring_is_told(module, clip):
    bare = replace(clip, mask=None, prompts=())
    warnings = ClipJob(module.engine, bare, 0, module.guidance_scale, module.outputs)._warnings
    assert any("five_mse" in sentence and "mask" in sentence for sentence in warnings)
    assert any("clip_text" in sentence and "prompt" in sentence for sentence in warnings)


def test_names_are_checked_and_lists_of_a_config_become_tuples():
    assert Outputs(metrics=["ssim", "ssim", "psnr"]).metrics == ("ssim", "psnr")
    for name in ("fid", "latent_error"):
        with pytest.raises(ValueError, match=f"metrics: must be of psnr, .*{name}"):
            Outputs(metrics=(name,))


def test_a_clip_that_was_not_measured_so_is_done_again(module, clip):
    settings = module.describe()
    outputs = settings["outputs"]

    def digest(**changes):
        changed = {**settings, "outputs": {**outputs, **changes}}
        return make_clip_fingerprint(module.engine, clip, seed=0, settings=changed)["settings"]

    assert digest() != digest(metrics=()) != digest(metrics=("psnr",))
    assert digest(metrics=()) == digest(metrics=(), lpips_weights=None)

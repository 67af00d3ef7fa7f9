"""What `check` says of a model, from configs and headers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file

from benchmarks.published import COGVIDEOX_5B_TRANSFORMER, COGVIDEOX_5B_VAE, T5_XXL
from ddim_lightning.cli.main import main
from ddim_lightning.engine.check import Model, describe_model, format_model
from ddim_lightning.engine.config import Runtime, Source
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER
from tests.random_tiny import write_image_to_video, write_random_tiny

COMMIT = "0" * 40


def look(model, runtime=Runtime(), source=Source(), **clip):  # noqa: B008, frozen
    return describe_model(Model(str(model), **clip), source, runtime)


@pytest.fixture
def folder(tmp_path):
    return write_random_tiny(tmp_path / "model")


@pytest.fixture
def hub(tmp_path):
    """The hub's cache with the configs of CogVideoX-5B, and no weights."""
    snapshot = tmp_path / "models--someone--video" / "snapshots" / COMMIT
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    for name, config in {
        "model_index.json": {"_class_name": "CogVideoXPipeline"},
        "transformer/config.json": COGVIDEOX_5B_TRANSFORMER,
        "vae/config.json": COGVIDEOX_5B_VAE,
        "text_encoder/config.json": {**T5_XXL, "architectures": ["T5EncoderModel"]},
        "scheduler/scheduler_config.json": {**COGVIDEOX_5B_SCHEDULER, "_class_name": "CogVideoXDPMScheduler"},
    }.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text(json.dumps(config))
    return tmp_path


def test_a_folder_is_told_by_what_is_on_disk(folder):
    found = look(folder)
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    part = found["parts"]["transformer"]
    assert part["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert (part["class"], part["dtypes"]) == (CogVideoXTransformer3DModel.__name__, ["F32"])
    assert part["files"] == ["diffusion_pytorch_model.safetensors"]
    assert found["form"] == "CogVideoX-5B"
    assert (found["videos"]["num_frames"], found["videos"]["height"]) == (9, 64)
    assert found["schedulers"]["corrected"] == []
    assert json.loads(json.dumps(found)) == found
    assert "predicted, not measured" in format_model(found)


def test_a_model_on_the_hub_is_told_by_its_configs(hub):
    source = Source(cache_dir=str(hub), local_files_only=True)
    found = look("someone/video", source=source)
    assert {name: round(part["parameters"] / 1e7) for name, part in found["parts"].items()} == {
        "transformer": 557,
        "vae": 22,
        "text_encoder": 476,
    }
    assert not any(part["dtypes"] or part["files"] for part in found["parts"].values())
    peaks = found["memory"]["peak_gib"]
    assert peaks["none"]["decode"] > peaks["none"]["invert"] > peaks["model"]["invert"] > peaks["blocks"]["invert"]
    assert peaks["none"]["decode"] < 22 and peaks["model"]["decode"] < 14
    assert max(peaks["blocks"][stage] for stage in ("prompts", "encode", "invert", "decode")) < 7.5
    assert found["memory"]["rows"] == 4  # a guided pair, and the two source rows it reads
    smaller = look("someone/video", source=source, num_frames=25, height=320, width=480)
    assert smaller["memory"]["peak_gib"]["blocks"]["decode"] < peaks["blocks"]["decode"]
    longer = look("someone/video", source=source, num_frames=97)
    assert longer["memory"]["peak_gib"] == peaks  # in windows


def test_the_dtype_counts_and_a_size_that_does_not_fit_is_refused(folder):
    two, four = (look(folder, Runtime(dtype=dtype))["memory"] for dtype in ("bfloat16", "float32"))
    assert four["peak_gib"]["none"]["decode"] == pytest.approx(2 * two["peak_gib"]["none"]["decode"])
    for clip, said in (({"num_frames": 8}, "num_frames"), ({"height": 63}, "height"), ({"width": 9}, "width")):
        with pytest.raises(ValueError, match=f"^{said} must be"):
            look(folder, **clip)


def test_what_an_in_context_edit_holds_is_told_and_counted_where_it_is_recommended(folder):
    before = look(folder)
    others = before["memory"]["rows"] - 1
    assert before["memory"]["holds"] == "none" and "would add" in format_model(before)
    (folder / "recommended.yaml").write_text("editor: InContextEdit\nguidance_scale: 1.5\n")
    for context in ("device", "host", "fp8"):
        found = look(folder, Runtime(context=context))
        memory = found["memory"]
        assert (memory["holds"], memory["rows"]) == (context, 2) and "an edit holds" in format_model(found)
        peaks = memory["peak_gib"]["none"]
        row = (peaks["edit"] - peaks["invert"]) - memory["context_gib"][context]
        assert row == pytest.approx((before["memory"]["peak_gib"]["none"]["edit"] - peaks["invert"]) / others)
    assert memory["context_gib"] == before["memory"]["context_gib"]


def test_what_fits_the_gpu_that_is_here_is_marked(hub, monkeypatch):
    source = Source(cache_dir=str(hub), local_files_only=True)
    assert "no GPU" in format_model(look("someone/video", source=source))
    gpu = {"name": "a card", "total_gib": 16.0, "room_gib": 15.25}
    monkeypatch.setattr("ddim_lightning.engine.check._read_gpu", lambda: gpu)
    found = look("someone/video", source=source)
    assert found["memory"]["gpu"] == gpu and found["memory"]["fitting"] == ["model", "blocks"]
    lines = {line.split()[0]: line for line in format_model(found).splitlines() if line.startswith("  ")}
    assert ["not" in lines[offload] for offload in ("none", "model", "blocks")] == [True, False, False]
    assert "a card" in format_model(found) and "15.25" in format_model(found)


def test_image_to_video_models_have_no_windows(folder, tmp_path):
    other = write_image_to_video(tmp_path / "other")
    said = [format_model(look(one)).partition("videos: ")[2].partition(";")[0] for one in (folder, other)]
    assert [("windows" in one, "none longer" in one) for one in said] == [(True, False), (False, True)]


def test_a_text_encoder_that_is_left_out(folder):
    shutil.rmtree(folder / "text_encoder")
    found = look(folder)
    assert found["parts"]["text_encoder"] is None
    assert "text_encoder: left out" in format_model(found)


def test_what_is_corrected_is_told_and_what_loading_refuses_is_refused(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(path.read_text())
    path.write_text(json.dumps({**scheduler, "timestep_spacing": "leading"}))
    (sentence,) = look(folder)["schedulers"]["corrected"]
    assert "timestep_spacing=leading" in sentence and sentence in format_model(look(folder))
    path.write_text(json.dumps({**scheduler, "prediction_type": "epsilon"}))
    with pytest.raises(ValueError, match="prediction_type must be v_prediction"):
        look(folder)
    path.write_text(json.dumps(scheduler))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.more"] = tensors["decoder.conv_in.conv.bias"].clone()
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"decoder\.more is no weight of the model"):
        look(folder)


def test_the_form_without_rotary_embeddings_needs_to_be_asked_for(tmp_path):
    flat = write_random_tiny(tmp_path / "flat", rotary=False)
    with pytest.raises(ValueError, match="rotary"):
        look(flat)
    assert look(flat, Runtime(require_rotary=False))["form"] == "CogVideoX-2B"


def test_the_command_takes_another_transformer(folder, tmp_path, capsys):
    other = write_random_tiny(tmp_path / "other", seed=3, transformer={"num_layers": 4}) / "transformer"
    assert main(["check", str(folder), "--transformer", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["parts"]["transformer"]["place"]) == other
    assert main(["check", str(folder)]) == 0
    assert "schedulers: sampling and inversion agree" in capsys.readouterr().out
    assert main(["check", str(folder), "--revision", "v1"]) == 1
    assert "revision: must be unset" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["5B-I2V", "1.5-5B-I2V"])
def test_a_model_that_takes_no_longer_clips_promises_no_windows(tmp_path, name):
    told = format_model(look(write_image_to_video(tmp_path, name)))
    assert "windows" not in told
    assert "32 x 48" in told

"""Every shipped config for prediction runs through the command line, with the model made small."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import yaml
from lightning.pytorch.strategies import ModelParallelStrategy

from ddim_lightning.cli.main import main
from ddim_lightning.data.video import write_video
from ddim_lightning.engine.shipped import find_shipped
from ddim_lightning.models.adapter_card import read_adapter_card
from ddim_lightning.writer import read_results

CONFIGS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in find_shipped("configs").glob("*.yaml")}
PREDICT = sorted(name for name, config in CONFIGS.items() if "writer" in config)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of two clips: 13 frames of 24 x 40 and 9 frames of 40 x 24."""
    folder = tmp_path_factory.mktemp("clips")
    generator = torch.Generator().manual_seed(0)
    for name, (f, h, w) in {"wide": (13, 24, 40), "tall": (9, 40, 24)}.items():
        frames = torch.randint(0, 256, (f, 3, h, w), generator=generator, dtype=torch.uint8)
        write_video(folder / f"{name}.mp4", frames, Fraction(8))
    return folder


def test_the_four_uses_have_a_config():
    assert {"edit", "invert", "cogvideox_5b", "tiny_cpu"} <= set(PREDICT)


@pytest.mark.parametrize("name", PREDICT)
def test_config_runs(name, clips, tiny_model, tmp_path):
    small = [
        "--model.model",
        str(tiny_model),
        "--model.schedule.num_inference_steps",
        "2",
        "--model.runtime.dtype",
        "float32",
    ]
    small += ["--model.runtime.compile", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    small += ["--data.num_frames", "5", "--data.height", "16", "--data.width", "24", "--data.num_workers", "0"]
    small += ["--data.videos", str(clips), "--writer.output_dir", str(tmp_path)]
    assert main(["predict", "--config", name, *small]) == 0
    records = read_results(tmp_path)
    assert [record["id"] for record in records] == ["tall", "wide"]
    asked = CONFIGS[name]
    prompts = asked["data"]["init_args"].get("prompts", [])
    for record in records:
        assert (record["status"], record["prompts"], record["frames"]["count"]) == ("done", prompts, 5)
        assert len(record["files"]["edits"]) == len(prompts)
        kept = asked["model"]["init_args"].get("outputs", {}).get("save_trajectory", False)
        assert (tmp_path / record["id"] / "trajectory.safetensors").is_file() == kept
        assert record["settings"]["inverter"]["class_path"].endswith(".UniInv")


def test_the_5b_config_takes_clips_shorter_than_the_model_allows(clips, tiny_model, tmp_path):
    small = [
        "--model.model",
        str(tiny_model),
        "--model.schedule.num_inference_steps",
        "1",
        "--model.runtime.dtype",
        "float32",
    ]
    small += ["--model.runtime.compile", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    small += ["--data.height", "16", "--data.width", "24", "--data.num_workers", "0"]
    small += ["--data.videos", str(clips / "tall.mp4"), "--writer.output_dir", str(tmp_path)]
    assert main(["predict", "--config", "cogvideox_5b", *small]) == 0
    (record,) = read_results(tmp_path)
    assert record["frames"]["count"] == 9


@pytest.mark.parametrize("name", ["edit_lora_24gb", "edit_lora_8x80gb"])
def test_a_config_that_trains_a_lora_is_built_and_takes_a_step(name, clips, tiny_model, tmp_path, monkeypatch):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"source_video,target_video,target_prompt\n{clips}/wide.mp4,{clips}/tall.mp4,a red circle\n")
    small = ["--model.model", str(tiny_model), "--model.training.rank", "4"]
    small += ["--data.pairs", str(pairs), "--data.batches.buckets", "[[5, 16, 24]]", "--data.num_workers", "0"]
    small += ["--data.batches.val_share", "0", "--trainer.callbacks.every_n_train_steps=1"]
    small += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", "1"]
    if name == "edit_lora_8x80gb":
        strategy = CONFIGS[name]["trainer"]["strategy"]
        assert ModelParallelStrategy(**strategy["init_args"])._data_parallel_size == CONFIGS[name]["trainer"]["devices"]
        small += ["--trainer.strategy", "auto"]
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", name, *small]) == 0
    kept = torch.load(tmp_path / "runs" / name / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 1 and "lora.source_mark.weight" in kept["state_dict"]
    card = read_adapter_card(tmp_path / "runs" / name / "edit_lora.safetensors")
    assert card is not None and (card.editor_name, card.num_inference_steps) == ("InContextEdit", 4)
    assert len(list((tmp_path / "runs" / "prompts").iterdir())) == 2  # of the target and the empty one


def test_a_config_for_eight_gpus_is_parsed_with_its_strategy(capsys):
    assert main(["fit", "--config", "edit_lora_8x80gb", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["strategy"]["class_path"].endswith("ModelParallelStrategy")
    assert printed["model"]["init_args"]["training"]["rank"] == 64


def test_the_5b_config_asks_for_a_gpu_and_the_published_model():
    config = CONFIGS["cogvideox_5b"]
    assert config["model"]["init_args"]["model"] == "zai-org/CogVideoX-5b"
    assert config["model"]["init_args"]["runtime"]["compile"] is True
    assert config["trainer"]["accelerator"] == "gpu"

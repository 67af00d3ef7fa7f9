"""A first frame that was edited elsewhere, from a manifest or a command line to the results."""

from __future__ import annotations

import json
import warnings
from fractions import Fraction

import pytest
import torch
from lightning import Trainer
from PIL import Image

from ddim_lightning import VideoDataModule, VideoWriter
from ddim_lightning.cli.main import main
from ddim_lightning.cli.running import QUIET
from ddim_lightning.data.video import write_video
from ddim_lightning.writer import read_results
from tests.modules import make_module
from tests.random_tiny import write_image_to_video


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    return write_image_to_video(tmp_path_factory.mktemp("models") / "random-tiny-i2v")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two clips of 9 frames, and a picture."""
    frames = torch.randint(0, 256, (9, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", frames, Fraction(8))
    Image.new("RGB", (48, 32), (200, 30, 40)).save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(model, output, **fields):
    module = make_module(str(model), num_inference_steps=2)
    data = VideoDataModule(**fields, num_workers=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trainer(callbacks=[VideoWriter(str(output))], **QUIET).predict(module, data)


def test_a_manifest_with_one_first_frame(image_model, here):
    (here / "clips.csv").write_text(
        "video,id,first_frame,seed,prompts\na.mp4,own,,3,a red circle\nb.mp4,other,red.png,3,a red circle\n"
    )
    own, other = predict(image_model, here / "out", videos=here / "clips.csv")
    assert own.status == other.status == "done"
    assert torch.equal(own.reconstruction, other.reconstruction)
    assert not torch.equal(own.edits[0].frames, other.edits[0].frames)
    records = {record["id"]: record["settings"]["first_frame"] for record in read_results(here / "out")}
    assert records == {"own": False, "other": str(here / "red.png")}
    assert own.fingerprint["request"] != other.fingerprint["request"]
    again = predict(image_model, here / "out", videos=here / "clips.csv")
    assert [result.status for result in again] == ["finished", "finished"]


def test_a_model_of_texts_alone_refuses_it_by_its_row(tiny_model, here):
    (here / "clips.csv").write_text("video,first_frame\na.mp4,\nb.mp4,red.png\n")
    with pytest.raises(ValueError, match=r"row 3: first_frame: .*CogVideoX-5b-I2V.*red\.png"):
        predict(tiny_model, here / "out", videos=here / "clips.csv")


def edit(model, *words):
    return main(["edit", "a.mp4", "--prompt", "a red circle", "--output", "out", "--model", str(model), *words])


def test_on_the_command_line(image_model, tiny_model, here, capsys):
    words = ["--steps", "2", "--first-frame", "red.png"]
    assert edit(image_model, *words) == 0
    (record,) = [json.loads(line) for line in (here / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert record["settings"]["first_frame"] == "red.png"
    capsys.readouterr()
    assert edit(tiny_model, *words) == 1
    assert "first_frame: " in capsys.readouterr().err
    assert edit(image_model, "--first-frame", "gone.png") == 1
    assert "first_frame gone.png" in capsys.readouterr().err

"""Networks come from where the user says, or from what is on this machine; nothing is fetched."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ddim_lightning.metrics.measurer import load_measurer
from ddim_lightning.metrics.measures import MEASURES, Networks, check_measures
from ddim_lightning.metrics.pieces import Piece
from tests.metrics.networks import SQUEEZE, write_clip, write_squeeze

NAMED = {
    "lpips": "lpips_weights",
    "five_lpips": "lpips_weights",
    "clip_text": "clip_model",
    "clip_frames": "clip_model",
    "five_clip": "clip_model",
    "warp_error": "raft_weights",
    "flow_fidelity": "raft_weights",
    "motion_fidelity": "tracker",
    "five_motion": "tracker",
}


@pytest.fixture
def closed(monkeypatch, tmp_path):
    """No network, empty caches, and nobody who asks for one."""

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


def test_what_lacks_its_network_says_so_and_how_to_name_it_and_the_rest_is_measured(closed):
    measurer = load_measurer(["psnr", *NAMED, "ssim"])
    assert measurer.names == ("psnr", "ssim")
    assert measurer.missing.keys() == NAMED.keys()
    for name, option in NAMED.items():
        sentence = measurer.missing[name]
        assert sentence.startswith(f"{option}: ")
        assert "\n" not in sentence
    assert SQUEEZE in measurer.missing["lpips"]
    frames = torch.zeros(1, 3, 16, 16)
    assert set(measurer.measure([Piece(frames, frames)])) == {"psnr", "ssim"}


def test_what_is_named_but_is_not_there_or_something_else_is_told(closed, tmp_path):
    other, text = tmp_path / "other.pth", tmp_path / "text.pth"
    torch.save({"weight": torch.zeros(2)}, other)
    text.write_text("no weights")
    for file, said in ((other, "weight"), (text, str(text)), (tmp_path / "gone.pth", "gone.pth")):
        networks = Networks(lpips_weights=str(file), raft_weights=str(file), clip_model=str(file), tracker=str(file))
        measurer = load_measurer(["lpips", "warp_error", "clip_frames", "motion_fidelity"], networks)
        assert measurer.names == ()
        assert said in measurer.missing["lpips"]
        assert said in measurer.missing["warp_error"]
        assert str(file) in measurer.missing["clip_frames"]
        assert str(file) in measurer.missing["motion_fidelity"]


def test_weights_are_found_in_torchs_cache(closed, tmp_path):
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    write_squeeze(tmp_path / "hub" / "checkpoints")
    assert load_measurer(["lpips"]).missing == {}


def test_names_that_are_no_measures_are_refused():
    assert check_measures(["ssim", "psnr", "ssim"]) == ("ssim", "psnr")
    with pytest.raises(ValueError, match=r"metrics: must be of psnr, .*'fid'"):
        check_measures(["fid"])
    with pytest.raises(ValueError, match="'latent_error'"):
        load_measurer(["latent_error"])


def test_each_number_belongs_to_one_measure():
    numbers = [number for measure in MEASURES.values() for number in measure.numbers]
    assert len(set(numbers)) == len(numbers)


def test_names_need_no_torch():
    code = "import sys, ddim_lightning.metrics.measures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def write_cotracker(folder):
    """A made-up clone: what its hubconf makes moves every point by its one weight."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"step": torch.tensor(2.0)}, folder / "checkpoints" / "scaled_offline.pth")
    folder.joinpath("hubconf.py").write_text(
        """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.tensor(float("nan")))

class Predictor(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Model()

    def forward(self, video, grid_size):
        sign = 1 if video[0, -1].mean() > video[0, 0].mean() else -1
        steps = torch.arange(video.shape[1])[None, :, None, None] * self.model.step * sign
        return steps.expand(1, -1, grid_size**2, 2), None

def cotracker3_offline(*, pretrained=True):
    assert not pretrained
    return Predictor()
"""
    )
    return folder


def test_a_tracker_is_taken_from_a_clone_with_its_checkpoint(closed, tmp_path):
    networks = Networks(tracker=str(write_cotracker(tmp_path / "co-tracker")))
    frames = torch.linspace(0, 1, 4)[:, None, None, None].expand(-1, 3, 8, 8)
    measurer = load_measurer(["motion_fidelity"], networks)
    assert measurer.measure([Piece(frames, frames)])["motion_fidelity"] == pytest.approx(1)
    assert measurer.measure([Piece(frames, frames.flip(0))])["motion_fidelity"] == pytest.approx(-1)


def test_another_default_device_changes_nothing(tmp_path):
    """A Trainer makes the GPU the default; here it is one that holds no values."""
    networks = Networks(lpips_weights=str(write_squeeze(tmp_path)), clip_model=str(write_clip(tmp_path)))
    measurer = load_measurer(["psnr", "ssim", "lpips", "five_ssim", "clip_text", "clip_frames"], networks)
    frames = torch.rand(2, 2, 3, 32, 36, generator=torch.Generator().manual_seed(0))
    piece = Piece(*frames, torch.rand(2, 32, 36) > 0.5)
    expected = measurer.measure([piece], "a dog")
    with torch.device("meta"):
        assert measurer.measure([piece], "a dog") == expected

"""PSNR, SSIM and LPIPS over the frame and over both sides of a mask, by both definitions."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

from ddim_lightning.metrics.functional import psnr, ssim
from ddim_lightning.metrics.measurer import load_measurer
from ddim_lightning.metrics.measures import Networks
from ddim_lightning.metrics.pieces import Piece
from tests.metrics.networks import write_alex, write_squeeze

PIXELS = ("psnr", "ssim", "lpips", "five_psnr", "five_mse", "five_ssim", "five_lpips")
FIVE = "FIVE_METRICS_CALCULATOR"  # path of evaluation/metrics_calculator.py of FiVE-Bench


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory):
    return write_squeeze(tmp_path_factory.mktemp("torch") / "").as_posix()


@pytest.fixture(scope="module")
def clip():
    """Three frames of 40 x 48, and the same with noise; a mask that is empty in the last frame."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(0, 256, (3, 3, 40, 48), generator=generator, dtype=torch.uint8)
    noise = torch.randint(-30, 31, reference.shape, generator=generator)
    mask = torch.zeros(3, 40, 48, dtype=torch.bool)
    mask[:2, 8:30, 5:21] = True
    return Piece((reference + noise).clamp(0, 255).to(torch.uint8), reference, mask)


def cut(piece, *lengths):
    """The same frames in pieces."""
    parts = zip(*(tensor.split(lengths) for tensor in (piece.video, piece.reference, piece.mask)), strict=True)
    return [Piece(*tensors) for tensors in parts]


def test_a_constant_shift_has_the_psnr_of_its_square():
    reference = torch.full((2, 3, 16, 18), 0.5)
    mask = torch.zeros(2, 16, 18, dtype=torch.bool)
    mask[:, :4] = True
    video = torch.where(mask[:, None], reference + 0.1, reference - 0.01)
    measured = load_measurer(["psnr", "five_psnr", "five_mse"]).measure([Piece(video, reference, mask)])
    assert measured["psnr_inside"] == pytest.approx(20, abs=1e-4)
    assert measured["psnr_outside"] == pytest.approx(40, abs=1e-4)
    error = (0.01 * 4 + 0.0001 * 12) / 16
    assert measured["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-4)
    # Three quarters of the pictures are black in both: their error is a quarter, 6.02 dB better.
    assert measured["psnr_edit_part"] == pytest.approx(20 + 10 * math.log10(4), abs=1e-4)
    assert measured["mse_unedit_part"] == pytest.approx(0.0001 * 12 / 16, rel=1e-4)


def test_equal_videos_are_equal_everywhere(clip, squeeze):
    measured = load_measurer(PIXELS, Networks(lpips_weights=squeeze)).measure(
        [Piece(clip.reference, clip.reference, clip.mask)]
    )
    assert len(measured) == 17
    for name, value in measured.items():
        expected = math.inf if name.startswith("psnr") else float(name.startswith("ssim"))
        assert value == pytest.approx(expected, abs=1e-6), name


def test_pieces_and_whole_are_the_same_and_those_of_the_plain_functions(clip, squeeze):
    measurer = load_measurer(PIXELS, Networks(lpips_weights=squeeze))
    whole, pieces = measurer.measure([clip]), measurer.measure(cut(clip, 2, 1))
    assert whole == pytest.approx(pieces, rel=1e-6)
    video, reference = clip.video / 255.0, clip.reference / 255.0
    assert whole["psnr"] == pytest.approx(psnr(video, reference), rel=1e-6)
    assert whole["ssim"] == pytest.approx(ssim(video, reference), rel=1e-6)
    _, values = structural_similarity_index_measure(video, reference, data_range=1.0, return_full_image=True)
    inside = clip.mask[:, None].expand_as(values)
    assert whole["ssim_inside"] == pytest.approx(float(values[inside].mean()), rel=1e-5)
    assert whole["ssim_outside"] == pytest.approx(float(values[~inside].mean()), rel=1e-5)
    for name, side in (("psnr_inside", clip.mask), ("psnr_outside", ~clip.mask)):
        error = (video - reference).double().square().mean(1)[side].mean()
        assert whole[name] == pytest.approx(float(-10 * error.log10()), rel=1e-6)


def test_lpips_is_that_of_torchmetrics_with_the_weights_in_torchs_cache(clip, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    write_squeeze(tmp_path / "checkpoints")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    measured = load_measurer(["lpips", "five_lpips"]).measure([clip])  # which finds them there too
    video, reference = clip.video / 255.0, clip.reference / 255.0

    def by_hand(first, second):
        return learned_perceptual_image_patch_similarity(first, second, net_type="squeeze", normalize=True).item()

    assert measured["lpips"] == pytest.approx(by_hand(video, reference), rel=1e-4)
    kept = ~clip.mask[:, None]
    assert measured["lpips_unedit_part"] == pytest.approx(by_hand(video * kept, reference * kept), rel=1e-4)
    kept = clip.mask[:2, None]  # no third frame, where nothing is edited
    assert measured["lpips_edit_part"] == pytest.approx(by_hand(video[:2] * kept, reference[:2] * kept), rel=1e-4)


def test_lpips_tells_its_network_by_the_file(clip, tmp_path, squeeze):
    alex = str(write_alex(tmp_path))
    parts = [load_measurer(["lpips"], Networks(lpips_weights=file)).parts["lpips_weights"] for file in (alex, squeeze)]
    assert [part.backbone for part in parts] == ["alex", "squeeze"]
    piece = Piece(clip.video, clip.reference).to(torch.device("cpu"))
    assert parts[0](piece.video, piece.reference).mean() != parts[1](piece.video, piece.reference).mean()


def test_small_frames_cost_the_measures_that_cannot_take_them_and_no_other(squeeze):
    frames = torch.zeros(2, 3, 5, 8, dtype=torch.uint8)
    measuring = load_measurer(PIXELS[:3], Networks(lpips_weights=squeeze)).start()
    measuring.add(Piece(frames, frames))
    assert measuring.read() == {"psnr": math.inf}
    assert [sentence.split(":")[0] for sentence in measuring.problems] == ["ssim", "lpips"]


def test_a_mask_of_another_size_is_refused():
    frames = torch.zeros(2, 3, 8, 10, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"mask: .* 2 frames of 8 x 10"):
        Piece(frames, frames, torch.ones(2, 10, 8, dtype=torch.bool))


def test_numbers_of_pictures_multiplied_by_the_mask_are_those_of_the_formulas(clip, squeeze):
    """Written out as FiVE's evaluation computes them: frame by frame, in float32, frames without the part left out."""
    measured = load_measurer(PIXELS[3:], Networks(lpips_weights=squeeze)).measure([clip])
    for part, side in (("edit_part", clip.mask), ("unedit_part", ~clip.mask)):
        errors, scores = [], []
        for frame, other, kept in zip(clip.video, clip.reference, side, strict=True):
            if kept.any():
                first, second = (picture.float() / 255 * kept for picture in (frame, other))
                errors.append(float((first - second).square().mean()))
                score = structural_similarity_index_measure(first[None], second[None], data_range=1.0)
                scores.append(float(score))
        assert len(errors) == (2 if part == "edit_part" else 3)
        decibels = [10 * math.log10(1 / error) for error in errors]
        for name, values in (("psnr", decibels), ("mse", errors), ("ssim", scores)):
            assert measured[f"{name}_{part}"] == pytest.approx(sum(values) / len(values), rel=1e-5)


@pytest.mark.skipif(FIVE not in os.environ, reason=f"{FIVE} names no metrics_calculator.py of FiVE-Bench")
def test_numbers_are_those_of_fives_own_program(clip, squeeze, tmp_path, monkeypatch):
    """Its class is taken as it stands, without the networks that need a GPU and the internet."""
    for name in ("imageio", "einops", "omegaconf", "qwen_vl_utils"):  # which the functions here do not call
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["einops"].rearrange = sys.modules["qwen_vl_utils"].process_vision_info = None
    sys.modules["omegaconf"].OmegaConf = None
    spec = importlib.util.spec_from_file_location("five_metrics_calculator", Path(os.environ[FIVE]))
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    (tmp_path / "checkpoints").mkdir()
    write_squeeze(tmp_path / "checkpoints")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    theirs = program.MetricsCalculator.__new__(program.MetricsCalculator)
    theirs.device = "cpu"
    theirs.psnr_metric_calculator = program.PeakSignalNoiseRatio(data_range=1.0)
    theirs.lpips_metric_calculator = program.LearnedPerceptualImagePatchSimilarity(net_type="squeeze")
    theirs.mse_metric_calculator = program.MeanSquaredError()
    theirs.ssim_metric_calculator = program.StructuralSimilarityIndexMeasure(data_range=1.0)
    ours = load_measurer(PIXELS[3:], Networks(lpips_weights=squeeze)).measure([clip])
    for part, side in (("edit_part", clip.mask), ("unedit_part", ~clip.mask)):
        for name in ("psnr", "mse", "ssim", "lpips"):
            values = []
            for frame, other, kept in zip(clip.video, clip.reference, side, strict=True):
                if kept.any():
                    first, second = (picture.permute(1, 2, 0).numpy() for picture in (other, frame))
                    mask = kept[:, :, None].expand(-1, -1, 3).numpy()
                    values.append(getattr(theirs, f"calculate_{name}")(first, second, mask, mask))
            assert ours[f"{name}_{part}"] == pytest.approx(sum(values) / len(values), rel=1e-5)

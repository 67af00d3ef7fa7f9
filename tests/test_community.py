"""The community pipeline's call gives the community pipeline's numbers; `community/make_cases.py` made them."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddim_lightning import CogVideoXPipelineForDDIMInversion
from ddim_lightning.community import choose_frames
from ddim_lightning.data.video import read_info
from ddim_lightning.limits import VideoLimits
from tests.community.make_cases import CASES, write_frames, write_model
from tests.random_tiny import write_random_tiny

LIMITS = VideoLimits(num_frames=49, height=480, width=720, multiple=16, temporal=4)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    made = CogVideoXPipelineForDDIMInversion.from_pretrained(write_model(tmp_path_factory.mktemp("model") / "tiny"))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(write_frames(tmp_path_factory.mktemp("clip") / "frames"))


def call(pipeline, clip, name, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline(**(CASES[name] | {"video_path": clip} | changes))


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_community_pipeline(pipeline, clip, name):
    wanted, made = load_file(Path(__file__).parent / "community" / f"{name}.safetensors"), call(pipeline, clip, name)
    assert set(wanted) == {"inverse_latents", "recon_latents"}
    for key, theirs in wanted.items():
        ours = getattr(made, key)
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        assert float((ours - theirs).norm() / theirs.norm()) <= 1e-4, key


def test_the_seed_decides(pipeline, clip):
    first, again, other = (call(pipeline, clip, "no-guidance", seed=seed).recon_latents for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_autocast_around_it_changes_nothing(pipeline, clip, tmp_path):
    wanted = call(pipeline, clip, "no-guidance")
    pipeline.export_latents_to_video(wanted.recon_latents[-1], str(tmp_path / "wanted.mp4"), fps=8)
    with torch.autocast("cpu", torch.bfloat16):
        made = call(pipeline, clip, "no-guidance")
        pipeline.export_latents_to_video(made.recon_latents[-1], str(tmp_path / "made.mp4"), fps=8)
    assert torch.equal(made.recon_latents, wanted.recon_latents)
    assert (tmp_path / "made.mp4").read_bytes() == (tmp_path / "wanted.mp4").read_bytes()


def test_arguments_are_those_of_the_community_pipeline():
    names = [
        name for name in inspect.signature(CogVideoXPipelineForDDIMInversion.__call__).parameters if name != "self"
    ]
    assert names == [
        "prompt", "video_path", "guidance_scale", "num_inference_steps", "skip_frames_start", "skip_frames_end",
        "frame_sample_step", "max_num_frames", "width", "height", "seed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance_scale", 0.5),
        ("guidance_scale", float("nan")),
        ("num_inference_steps", 0),
        ("skip_frames_start", -1),
        ("skip_frames_end", -2),
        ("frame_sample_step", 0),
        ("max_num_frames", 4),
        ("width", 50),
        ("height", 30),
    ],
)
def test_what_cannot_be_honored_is_an_error_by_its_name(pipeline, clip, name, value):
    with pytest.raises(ValueError, match=rf"{name}.* got {value}"):
        call(pipeline, clip, "guidance-6", **{name: value})


@pytest.mark.parametrize("changes", [{"skip_frames_start": 28}, {"skip_frames_end": 99}, {"frame_sample_step": 8}])
def test_too_few_frames_are_an_error_that_names_what_left_them_out(pipeline, clip, changes):
    with pytest.raises(ValueError, match=rf"^.*{next(iter(changes))}.*: must leave at least 5 of 31 frames, got"):
        call(pipeline, clip, "guidance-6", **changes)


def test_models_without_rotary_embeddings_are_refused(tmp_path, clip):
    other = CogVideoXPipelineForDDIMInversion.from_pretrained(write_random_tiny(tmp_path / "2b", rotary=False))
    with pytest.raises(ValueError, match="rotary"):
        call(other, clip, "no-guidance")


@pytest.mark.parametrize(
    ("total", "start", "end", "step", "most", "wanted"),
    [
        (9, 0, 0, None, 81, range(9)),
        (12, 1, 0, None, 81, range(1, 10)),  # 11 frames are left, the last two go
        (100, 0, 0, None, 49, range(0, 98, 2)),  # 100 // 49
        (100, 10, 20, 3, 17, range(10, 61, 3)),
        (100, 0, 0, 7, 49, range(0, 85, 7)),  # 15 of every seventh
        (50, 0, 0, None, 49, range(49)),
    ],
)
def test_frames_are_chosen_as_there(total, start, end, step, most, wanted):
    arguments = {"skip_frames_start": start, "skip_frames_end": end, "frame_sample_step": step, "max_num_frames": most}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert choose_frames(total, LIMITS, **arguments) == wanted


@pytest.mark.parametrize(("step", "name"), [(2, "frame_sample_step"), (None, "max_num_frames")])
def test_what_has_no_effect_and_what_is_left_out_is_told(step, name):
    with pytest.warns(UserWarning, match=f"^{name}: "):
        choose_frames(12, LIMITS, skip_frames_start=0, skip_frames_end=0, frame_sample_step=step, max_num_frames=49)


def test_latents_are_exported_as_a_video(pipeline, clip, tmp_path):
    made = call(pipeline, clip, "no-guidance")
    pipeline.export_latents_to_video(made.recon_latents[-1], str(tmp_path / "new" / "edit.mp4"), fps=8)
    info = read_info(tmp_path / "new" / "edit.mp4")
    assert (info.num_frames, info.height, info.width, info.fps) == (9, 32, 48, 8)


def test_the_scheduler_is_the_one_to_replace(pipeline):
    assert torch.equal(pipeline.inverse_scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    with pytest.raises(AttributeError, match="inverse_scheduler"):
        pipeline.inverse_scheduler = pipeline.inverse_scheduler

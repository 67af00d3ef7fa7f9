"""Clips longer than the model takes at once: the whole job, within the memory of a window."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from lightning import Trainer

from ddim_lightning import BDIA, Clip, KVInjection, Outputs, UniInv, VideoDataModule, VideoWriter
from ddim_lightning.data.streams import make_generator
from ddim_lightning.data.video import read_info, write_video
from ddim_lightning.engine.clip_job import ClipJob
from ddim_lightning.engine.trajectory import make_fingerprint, write_trajectory
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.tiny.shapes import render, sample_edit, sample_scene
from ddim_lightning.types import EditRequest
from ddim_lightning.writer import read_results
from tests.modules import make_module

SEAMS, INSIDE = tuple(range(5, 13)), (*range(5), *range(13, 17))
"""Of 17 frames in three windows: those where two windows are blended, and those that one window alone decides."""


def make_long_scene(index):
    """A scene of 17 frames whose object stays in the picture, and one with another color or another shape."""
    generator = make_generator(11, "long", index)
    scene = sample_scene(generator)
    scene = replace(scene, x=32.0, y=32.0, speed=min(scene.speed, (31 - scene.radius) / 8))
    return scene, sample_edit(scene, ["color" if index % 2 else "shape"], generator)


@pytest.fixture(scope="module")
def engine(tiny_model):
    module = make_module(str(tiny_model), num_inference_steps=2, inverter=UniInv(), editor=KVInjection())
    module.load("cpu")
    return module.engine


def make_clip(num_frames=21, **fields):
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(0, 256, (num_frames, 3, 24, 40), generator=generator, dtype=torch.uint8)
    return Clip(**({"id": "clip", "frames": frames, "prompts": ("a red circle",)} | fields))


def run(engine, clip, on_progress=lambda progress: None, **outputs):
    job = ClipJob(engine, clip, seed=5, guidance_scale=6.0, outputs=Outputs(**outputs), on_progress=on_progress)
    return job.run()


def test_a_mask_goes_window_by_window(engine):
    """In the first window nothing may change: the source is all there is, and no velocity of the edit."""
    mask = torch.zeros(21, 24, 40, dtype=torch.bool)
    mask[12:, 8:16, 16:32] = True
    inside = replace(engine, editor=KVInjection(outside="source"))
    result = run(inside, make_clip(mask=mask), save_trajectory=True)
    assert result.nfe["edit"] == 4 * 2 * 3
    changed = (result.edits[0].latents != result.trajectory["levels"][-1])[0].any(dim=1)
    wanted = torch.zeros(6, 6, 10, dtype=torch.bool)
    wanted[3:, 2:4, 4:8] = True
    assert torch.equal(changed, wanted)


def test_the_job_counts_and_tells_its_windows(engine):
    seen, mask = [], torch.zeros(21, 24, 40, dtype=torch.bool)
    mask[:, :12] = True
    result = run(engine, make_clip(mask=mask), seen.append, save_trajectory=True)
    assert result.windows == {"count": 4, "frames": 3, "overlap": 2}
    assert result.nfe == {"invert": 4 * 3, "reconstruct": 4 * 2, "edit": 4 * 2 * 3}
    assert {p.stage: p.windows for p in seen} == {"encode": 1, "invert": 4, "reconstruct": 4, "edit": 4, "decode": 1}
    assert seen[0].nfe_left == 4 * (3 + 2 + 6) and seen[-1].nfe_left == 0
    assert result.reconstruction.shape == result.edits[0].frames.shape == (21, 3, 24, 40)
    assert result.trajectory["levels"].shape == (3, 1, 6, 8, 6, 10)
    # Outside a mask an edit is the source.
    source = result.trajectory["levels"][-1]
    assert torch.equal(result.edits[0].latents[..., 3:, :], source[..., 3:, :])
    assert not torch.equal(result.edits[0].latents, source)
    assert run(engine, make_clip(9), reconstruct=False).windows == {}


def test_a_trajectory_of_other_windows_is_refused(engine, tmp_path):
    first, clip = run(engine, make_clip(), save_trajectory=True), make_clip()
    (tmp_path / clip.id).mkdir()
    path = tmp_path / clip.id / "trajectory.safetensors"
    fingerprint = make_fingerprint(engine, clip, "")
    write_trajectory(path, first.trajectory, {"fingerprint": fingerprint})
    again = run(engine, clip, trajectory_dir=str(tmp_path))
    assert again.nfe["invert"] == 0 and torch.equal(again.edits[0].latents, first.edits[0].latents)
    others = replace(engine.denoiser.windows, overlap=1)
    write_trajectory(path, first.trajectory, {"fingerprint": fingerprint | {"windows": repr(others)}})
    with pytest.raises(ValueError, match=r"windows .*overlap=2.* got .*overlap=1"):
        run(engine, clip, trajectory_dir=str(tmp_path))


def test_metrics_of_pieces_are_those_of_the_whole(engine):
    result, clip = run(engine, make_clip(prompts=())), make_clip()
    with torch.no_grad():
        latents = engine.encode(clip.frames)
        ceiling, rebuilt = (engine.decode(x)[0] for x in (latents, engine.reconstruct(engine.invert(latents))))
    assert torch.equal(result.vae_round_trip, (ceiling * 255).round().to(torch.uint8))
    assert result.metrics["vae"]["psnr"] == pytest.approx(psnr(ceiling, clip.frames / 255), abs=1e-6)
    assert result.metrics["reconstruction"]["psnr_vs_vae"] == pytest.approx(psnr(rebuilt, ceiling), abs=1e-3)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_an_overlap_is_a_share(share):
    with pytest.raises(ValueError, match=rf"^window_overlap: must lie in 0 \.\. 1, got {share}$"):
        make_module(window_overlap=share)


@pytest.mark.parametrize(("share", "overlap"), [(0.0, 1), (0.25, 2), (1.0, 2)])
def test_an_overlap_becomes_latent_frames(share, overlap, tiny_model):
    module = make_module(str(tiny_model), window_overlap=share)
    module.load("cpu")
    assert module.engine.denoiser.windows.overlap == overlap


@torch.inference_mode()
def test_three_windows_come_back_as_one_does():
    """With the bundled model; its exact inverter, for what is asked is whether windows are the same both ways."""
    module = make_module(num_inference_steps=8, inverter=BDIA())
    module.load("cpu")
    engine = module.engine
    latents = engine.encode(render(make_long_scene(0)[0], 17))
    ceiling, back = (engine.decode(x)[0] for x in (latents, engine.reconstruct(engine.invert(latents))))
    assert engine.count_windows(5) == 3
    assert min(psnr(frame[None], wanted[None]) for frame, wanted in zip(back, ceiling, strict=True)) > 60


@pytest.mark.slow
@torch.inference_mode()
def test_three_windows_at_the_recommended_settings_show_no_seams():
    module = make_module()
    module.load("cpu")
    engine = module.engine
    made = {name: [] for name in ("source", "ceiling", "back", "edited", "truth")}
    for k in range(4):
        scene, target = make_long_scene(k)
        source, latents = render(scene, 17), engine.encode(render(scene, 17))
        inversion = engine.invert(latents)
        request = EditRequest(target.caption, source_prompt=scene.caption, guidance_scale=module.guidance_scale)
        made["source"].append(source / 255)
        made["truth"].append(render(target, 17) / 255)
        for name, clean in {
            "ceiling": latents,
            "back": engine.reconstruct(inversion),
            "edited": engine.edit(inversion, request, seed=k),
        }.items():
            made[name].append(engine.decode(clean)[0])
        assert psnr(made["back"][-1], made["ceiling"][-1]) > 45
    videos = {name: torch.stack(made[name]) for name in made}
    for name, reference in (("back", "ceiling"), ("back", "source"), ("edited", "truth")):
        at_seams, inside = (
            psnr(videos[name][:, frames].flatten(0, 1), videos[reference][:, frames].flatten(0, 1))
            for frames in (SEAMS, INSIDE)
        )
        print(f"{name} against {reference}: {at_seams:.2f} dB at the seams, {inside:.2f} dB inside")
        assert at_seams > inside - 0.5


def write_long_video(path, num_frames, height=16, width=24):
    """Smooth moving colors."""
    rows, columns, times = torch.arange(height)[:, None], torch.arange(width), torch.arange(num_frames)
    phase = torch.tensor([0.3, 1.1, 2.3])[:, None, None]
    frames = 127 + 100 * torch.sin(rows / 9 + columns / 13 + times[:, None, None, None] / 7 + phase)
    write_video(path, frames.round().to(torch.uint8), Fraction(25))


def test_all_of_a_long_video_runs_through_with_no_more_than_a_window_at_a_time(tiny_model, tmp_path):
    write_long_video(tmp_path / "long.mp4", 250)
    options = {"num_inference_steps": 1, "editor": KVInjection(), "window_overlap": 0.0, "on_error": "raise"}
    module = make_module(str(tiny_model), guidance_scale=2.0, **options)
    module.load("cpu")
    parts, sizes = module.components, {"network": set(), "encoder": set(), "decoder": set()}
    watched = {"network": (parts.transformer.proj_out, 1), "encoder": (parts.vae.encoder, 2)}
    for name, (part, axis) in (watched | {"decoder": (parts.vae.decoder, 2)}).items():
        part.register_forward_pre_hook(lambda _, x, name=name, axis=axis: sizes[name].add(x[0].shape[axis]))
    seen = []
    module.progress_listeners.append(seen.append)
    data = VideoDataModule(tmp_path / "long.mp4", "a red circle", num_frames="all", height=16, width=24, num_workers=0)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[VideoWriter(str(tmp_path / "out"))]
    )
    trainer.predict(module, data, return_predictions=False)
    (record,) = read_results(tmp_path / "out")
    assert record["frames"] == {"start": 0, "stride": 1, "count": 249, "dropped": 1, "cropped": 0.0}
    assert record["windows"] == {"count": 31, "frames": 3, "overlap": 1} and max(p.windows for p in seen) == 31
    assert any("249..249 of 250" in sentence for sentence in record["warnings"])
    for name in ("source", "reconstruction", "edit-00"):
        assert read_info(tmp_path / "out" / "long" / f"{name}.mp4").num_frames == 249
    assert sizes == {"network": {3 * 2 * 3}, "encoder": {9, 8}, "decoder": {3, 2}}

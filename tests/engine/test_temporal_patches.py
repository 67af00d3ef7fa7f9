"""CogVideoX1.5, whose tokens hold two latent frames, on a small random model with its configuration."""

import math
from fractions import Fraction

import pytest
import torch
from lightning import Trainer

from ddim_lightning import (
    BDIA,
    DDIM,
    Clip,
    DDIMInversionModule,
    Denoise,
    DirectInversion,
    FlowEdit,
    KVInjection,
    UniInv,
    VideoDataModule,
)
from ddim_lightning.data.video import write_video
from ddim_lightning.engine.clip_job import ClipJob
from ddim_lightning.engine.config import Outputs
from ddim_lightning.engine.export import export_network, make_row_size
from ddim_lightning.limits import count_latent_frames
from tests.modules import make_module
from tests.network.test_adapters import TARGETS, write_lora
from tests.random_tiny import TRANSFORMER, write_random_tiny
from tests.variants import adapt


def write(folder, name, sample_frames=81):
    return write_random_tiny(folder, transformer=adapt(name, TRANSFORMER | {"sample_frames": sample_frames}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("patches"), "1.5-5B")


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain"), "5B")


def load(folder, **options):
    module = make_module(str(folder), **{"num_inference_steps": 4} | options)
    module.load("cpu")
    return module


def make_frames(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 24), generator=generator, dtype=torch.uint8)


def measure_round_trip(module, frames):
    """PSNR of a reconstruction against the VAE's own round trip, in decibels."""
    engine, count = module.engine, len(frames)
    latents = engine.encode(frames)
    returned = engine.reconstruct(engine.invert(latents))
    ours, ceiling = (engine.decode(one, count) for one in (returned, latents))
    assert ours.shape == ceiling.shape == (1, count, *frames.shape[1:])
    return -10 * math.log10(float((ours.double() - ceiling.double()).square().mean()))


COUNTS = [9, 13, 17, 21, *(pytest.param(count, marks=pytest.mark.slow) for count in (49, 81))]


@pytest.mark.parametrize("count", COUNTS)
@torch.no_grad()
def test_a_clip_comes_back_as_well_as_by_single_frames(count, folder, plain_folder):
    frames = make_frames(count)
    ours, single = (measure_round_trip(load(one, inverter=UniInv()), frames) for one in (folder, plain_folder))
    assert ours > single - 1.0 > 15.0


def test_the_first_latent_frame_is_repeated_where_it_must_be(folder):
    engine = load(folder).engine
    for count, latent_frames in ((5, 2), (9, 4), (13, 4), (17, 6)):
        frames = make_frames(count)
        latents = engine.encode(frames)
        assert latents.shape[1] == latent_frames == count_latent_frames(count, engine.components.limits)
        padded = count % 8 == 1
        assert torch.equal(latents[:, 0], latents[:, 1]) == padded
        assert torch.equal(engine.decode(latents, count), load(folder).engine.decode(engine.encode(frames), count))
    for count in (None, 5, 10):
        with pytest.raises(ValueError, match=r"^num_frames: must"):
            engine.decode(latents, count)


@pytest.mark.parametrize(
    "editor", [Denoise(), KVInjection(), FlowEdit(), DirectInversion()], ids=lambda e: type(e).__name__
)
def test_every_editor_edits(editor, folder):
    mask = torch.zeros(9, 16, 24, dtype=torch.bool)
    mask[:, :, :12] = True
    clip = Clip("clip", make_frames(9), prompts=("a red circle",), source_prompt="a cat", mask=mask)
    engine = load(folder, editor=editor).engine
    result = ClipJob(engine, clip, seed=1, guidance_scale=2.0, outputs=Outputs()).run()
    (edit,) = result.edits
    assert edit.frames.shape == clip.frames.shape == result.reconstruction.shape
    source = engine.encode(clip.frames)
    inside, outside = edit.latents[..., :3] - source[..., :3], edit.latents[..., 3:] - source[..., 3:]
    assert inside.abs().max() > 1e-2
    assert outside.abs().max() < 1e-5


def test_a_long_clip_goes_through_windows(tmp_path):
    engine = load(write(tmp_path, "1.5-5B", sample_frames=13), inverter=BDIA(), editor=KVInjection()).engine
    windows = engine.denoiser.windows
    assert (windows.length, engine.count_windows(8)) == (4, 3)
    clip = Clip("clip", make_frames(29), prompts=("a red circle",))
    result = ClipJob(engine, clip, seed=1, guidance_scale=2.0, outputs=Outputs()).run()
    assert result.windows["count"] == 3
    assert result.metrics["reconstruction"]["psnr_vs_vae"] > 80.0
    assert result.edits[0].frames.shape == clip.frames.shape


def test_a_trainer_does_clips_of_any_count(folder, tmp_path):
    for count in (9, 13):
        write_video(tmp_path / f"clip-{count}.mp4", make_frames(count), Fraction(8))
    lines = [f'{{"video": "clip-{count}.mp4", "prompts": ["cat"], "num_frames": {count}}}\n' for count in (9, 13)]
    (tmp_path / "clips.jsonl").write_text("".join(lines))
    data = VideoDataModule(tmp_path / "clips.jsonl", height=16, width=24, num_workers=0)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False)
    results = trainer.predict(make_module(str(folder), num_inference_steps=2), data)
    assert [(result.status, len(result.edits[0].frames)) for result in results] == [("done", 9), ("done", 13)]


def test_plain_diffusers_reconstructs_from_our_noise(folder):
    module = load(folder, inverter=DDIM())
    engine, frames = module.engine, make_frames(9)
    inversion = engine.invert(engine.encode(frames))
    pipeline = DDIMInversionModule.from_pretrained(str(folder), device="cpu").to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "", num_frames=9, height=16, width=24, num_inference_steps=4, guidance_scale=1.0,
        latents=inversion.x_T, output_type="latent", max_sequence_length=16,
    ).frames  # fmt: skip
    ours = engine.reconstruct(inversion)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_what_is_encoded_already_says_how_many_frames_it_is_of(folder):
    module, frames = load(folder), make_frames(9)
    latents = module.engine.encode(frames)
    (result,) = module.predict_step([{"latents": latents[0], "num_frames": 9, "prompt": "cat"}], 0)
    assert result.status == "done" and result.clip.frames.shape == frames.shape
    (result,) = module.predict_step([{"latents": latents[0], "prompt": "cat"}], 0)
    assert result.status == "skipped" and "num_frames: " in result.reason


def test_lora_compiled_blocks_and_graphs_agree_with_the_eager_model(folder, tmp_path):
    module = load(folder, num_inference_steps=2, inverter=DDIM())
    write_lora(module.transformer, TARGETS["attention"], tmp_path / "lora")
    frames = make_frames(9)

    def invert(**options):
        made = load(folder, num_inference_steps=2, inverter=DDIM(), **options)
        return made.engine.invert(made.engine.encode(frames)).x_T

    plain = module.engine.invert(module.engine.encode(frames)).x_T
    adapted = invert(lora=[str(tmp_path / "lora")])
    assert (adapted - plain).abs().max() > 1e-2
    torch.testing.assert_close(invert(lora=[str(tmp_path / "lora")], forward="diffusers"), adapted, rtol=0, atol=1e-4)
    torch.testing.assert_close(invert(compile=True), plain, rtol=0, atol=1e-4)
    size = make_row_size(module.components, 9, 16, 24)
    export_network(module.engine, tmp_path / "graphs", "torch-export", size=size, guidance_scale=1.0)
    torch.testing.assert_close(invert(exported=str(tmp_path / "graphs")), plain, rtol=0, atol=1e-4)


def test_latents_that_are_not_padded_yet_are_padded(folder):
    """Whoever encodes with the VAE alone has as many latent frames as it makes."""
    module, frames = load(folder, num_inference_steps=2, reconstruct=False, on_error="raise"), make_frames(9)
    padded = module.engine.encode(frames)
    results = [
        module.predict_step({"video": frames, "latents": latents, "prompt": "a red circle", "id": "clip"}, 0)
        for latents in (padded, padded[0, 1:])
    ]
    assert (padded.shape[1], len(padded[0, 1:])) == (4, 3)
    assert torch.equal(*(result.edits[0].latents for result in results))
    bare = module.predict_step({"latents": padded[0, 1:], "num_frames": 9, "id": "clip"}, 0)
    assert torch.equal(bare.clip.frames, results[0].vae_round_trip)

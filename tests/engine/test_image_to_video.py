"""Image-to-video models invert, reconstruct and edit, and propagate a first frame that was edited elsewhere."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline

from ddim_lightning import BDIA, DDIM, Clip, DDIMInversionModule, Denoise, DirectInversion, FlowEdit, KVInjection
from ddim_lightning.engine.clip_job import ClipJob
from ddim_lightning.engine.config import Outputs, Schedule, Training
from ddim_lightning.engine.export import export_network, make_row_size
from ddim_lightning.engine.trajectory import make_fingerprint, write_trajectory
from ddim_lightning.types import Branch
from tests.modules import make_module
from tests.random_tiny import write_image_to_video

NAMES = ["5B-I2V", "1.5-5B-I2V"]
SIZE = {"num_frames": 9, "height": 32, "width": 48}
STEPS = 4  # diffusers' scheduler steps from level to level only where it divides 1000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_image_to_video(tmp_path_factory.mktemp("models") / name, name) for name in NAMES}


@pytest.fixture(scope="module", params=NAMES)
def pipeline(request, folders):
    """The plain pipeline, with a VAE whose posterior has no spread: its samples are the mode."""
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(folders[request.param])
    pipeline.set_progress_bar_config(disable=True)
    last, channels = pipeline.vae.encoder.conv_out.conv, pipeline.vae.config.latent_channels
    with torch.no_grad():
        last.weight[channels:] = 0.0
        last.bias[channels:] = -30.0  # the logarithm of the variance
    return pipeline


def make_engine(pipeline, **options):
    module = DDIMInversionModule.from_pipeline(pipeline, schedule=Schedule(num_inference_steps=STEPS), **options)
    module.load("cpu")
    return module.engine


def make_frames(seed=0, count=9):
    return torch.randint(0, 256, (count, 3, 32, 48), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def invert(engine, frames):
    latents = engine.encode(frames)
    return engine.invert(latents, image_latents=engine.encode_image(frames[0], latents.shape[1]))


def run(engine, clip, **outputs):
    return ClipJob(engine, clip, seed=5, guidance_scale=2.0, outputs=Outputs(**outputs)).run()


def test_image_latents_are_those_of_the_plain_pipeline(pipeline):
    frames = make_frames()
    engine = make_engine(pipeline)
    taken = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: taken.append(kwargs["hidden_states"]), with_kwargs=True
    )
    generate(pipeline, frames, steps=1)
    hook.remove()
    latents = engine.encode(frames)
    image = engine.encode_image(frames[0], latents.shape[1])
    channels = image.shape[2]
    assert taken[0].shape == (1, latents.shape[1], 2 * channels, 8, 12)
    torch.testing.assert_close(image, taken[0][:, :, channels:], rtol=0, atol=1e-5)
    assert image[:, 0].abs().max() > 0.1 and not image[:, 1:].any()
    floats = engine.encode_image(frames[None, 0] / 255.0, latents.shape[1])
    torch.testing.assert_close(floats, image, rtol=0, atol=1e-6)


def generate(pipeline, frames, *, steps=STEPS, **options):
    return pipeline(
        frames[None, 0] / 255.0, "", num_inference_steps=steps, guidance_scale=1.0, output_type="latent",
        max_sequence_length=pipeline.transformer.config.max_text_seq_length, **SIZE, **options,
    ).frames  # fmt: skip


def test_plain_diffusers_reconstructs_from_our_noise(pipeline):
    frames, engine = make_frames(), make_engine(pipeline, inverter=DDIM())
    inversion = invert(engine, frames)
    ours = engine.reconstruct(inversion)
    torch.testing.assert_close(generate(pipeline, frames, latents=inversion.x_T), ours, rtol=0, atol=1e-4)
    other = generate(pipeline, make_frames(1), latents=inversion.x_T)
    assert (other - ours).abs().max() > 1e-2


def test_the_way_back_is_exact(pipeline):
    engine = make_engine(pipeline, inverter=BDIA())
    latents = engine.encode(make_frames())
    torch.testing.assert_close(engine.reconstruct(invert(engine, make_frames())), latents, rtol=0, atol=1e-4)


def test_a_velocity_is_that_of_the_plain_transformer(pipeline):
    frames, engine = make_frames(), make_engine(pipeline)
    latents = engine.encode(frames)
    image = engine.encode_image(frames[0], latents.shape[1])
    step = engine.schedule[1]
    branch = Branch(latents, "a red circle", "", 3.0, image_latents=image)
    (ours,) = engine.denoiser([branch], step)
    rotary = pipeline._prepare_rotary_positional_embeddings(32, 48, latents.shape[1], torch.device("cpu"))
    theirs = pipeline.transformer(
        torch.cat([latents, image], dim=2).expand(2, -1, -1, -1, -1),
        torch.cat([engine.prompts(""), engine.prompts("a red circle")]),
        torch.full((2,), step.timestep),
        ofs=None if pipeline.transformer.config.ofs_embed_dim is None else torch.full((1,), 2.0),
        image_rotary_emb=rotary,
    ).sample
    negative, positive = theirs.chunk(2)
    torch.testing.assert_close(ours, negative + 3.0 * (positive - negative), rtol=0, atol=1e-4)


def test_a_module_hands_over_such_a_pipeline(pipeline):
    module = DDIMInversionModule.from_pipeline(pipeline)
    module.load("cpu")
    assert type(module.to_pipeline()) is CogVideoXImageToVideoPipeline
    assert module.to_pipeline().transformer is pipeline.transformer


def test_such_a_model_is_not_trained(folders):
    module = DDIMInversionModule(str(folders["5B-I2V"]), training=Training())
    with pytest.raises(ValueError, match=r"^training: needs a text-to-video model"):
        module.load("cpu")
    assert module._engine is None


@pytest.mark.parametrize(
    "editor",
    [
        KVInjection(),
        Denoise(first_step=1, initial="random", velocity_mask=0.2),
        DirectInversion(kv_scale=0.5),
        FlowEdit(first_step=1),
    ],
    ids=lambda editor: type(editor).__name__,
)
@pytest.mark.parametrize("name", NAMES)
def test_a_first_frame_changes_the_edit_and_not_the_reconstruction(name, editor, folders, tmp_path):
    module = make_module(str(folders[name]), num_inference_steps=STEPS, editor=editor)
    module.load("cpu")
    fields = {"frames": make_frames(), "prompts": ("a red circle",), "source_prompt": "a blue square"}
    own, same, other = (
        run(module.engine, Clip("clip", first_frame=frame, **fields))
        for frame in (None, fields["frames"][0], make_frames(1)[0])
    )
    assert torch.equal(own.edits[0].latents, same.edits[0].latents)
    assert (own.edits[0].latents - other.edits[0].latents).abs().max() > 1e-3
    assert torch.equal(own.reconstruction, other.reconstruction)
    assert own.nfe == other.nfe


def test_an_edit_without_an_inversion_is_shown_the_same_images(folders):
    module = make_module(str(folders["5B-I2V"]), num_inference_steps=STEPS, editor=FlowEdit(first_step=1))
    module.load("cpu")
    for first_frame in (None, make_frames(1)[0]):
        clip = Clip("clip", make_frames(), prompts=("a red circle",), first_frame=first_frame)
        alone, asked = (run(module.engine, clip, reconstruct=reconstruct) for reconstruct in (False, True))
        assert "invert" in asked.nfe and "invert" not in alone.nfe
        assert torch.equal(alone.edits[0].latents, asked.edits[0].latents)


def test_a_stored_trajectory_brings_its_image(folders, tmp_path):
    module = make_module(str(folders["5B-I2V"]), num_inference_steps=STEPS)
    module.load("cpu")
    clip = Clip("clip", make_frames(), prompts=("a red circle",), first_frame=make_frames(1)[0])
    fresh = run(module.engine, clip, save_trajectory=True)
    assert torch.equal(fresh.trajectory["image_latents"], module.engine.encode_image(clip.frames[0], 3))
    (tmp_path / "clip").mkdir()
    path = tmp_path / "clip" / "trajectory.safetensors"
    write_trajectory(path, fresh.trajectory, {"fingerprint": make_fingerprint(module.engine, clip, "")})
    again = run(module.engine, clip, trajectory_dir=str(tmp_path))
    assert again.nfe["invert"] == 0
    assert torch.equal(again.edits[0].latents, fresh.edits[0].latents)
    assert torch.equal(again.reconstruction, fresh.reconstruction)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"first_frame": torch.zeros(3, 48, 32, dtype=torch.uint8)}, r"^first_frame: .*\(3, 48, 32\)"),
        ({"first_frame": torch.zeros(3, 32, 48)}, r"^first_frame: .*float32"),
        ({"frames": make_frames(count=13)}, r"^num_frames: an image-to-video model takes 9 .*got 13"),
    ],
)
def test_what_such_a_model_cannot_take(fields, message, folders):
    module = make_module(str(folders["1.5-5B-I2V"]), num_inference_steps=STEPS)
    module.load("cpu")
    with pytest.raises(ValueError, match=message):
        ClipJob(module.engine, Clip(**{"id": "clip", "frames": make_frames(), **fields}), seed=0, guidance_scale=2.0)


def test_a_first_frame_without_an_edit_is_told(folders):
    module = make_module(str(folders["5B-I2V"]), num_inference_steps=STEPS)
    module.load("cpu")
    result = run(module.engine, Clip("clip", make_frames(), first_frame=make_frames(1)[0]), reconstruct=False)
    assert [sentence for sentence in result.warnings if sentence.startswith("first_frame: ")]


@pytest.mark.parametrize("name", NAMES)
def test_exported_graphs_take_the_image_too(name, folders, tmp_path):
    options = {"num_inference_steps": 2, "inverter": DDIM(), "editor": KVInjection()}
    eager = make_module(str(folders[name]), **options)
    eager.load("cpu")
    size = make_row_size(eager.components, 9, 32, 48)
    export_network(eager.engine, tmp_path, "torchscript", size=size, guidance_scale=2.0)
    exported = make_module(str(folders[name]), exported=str(tmp_path), **options)
    exported.load("cpu")
    clip = Clip("clip", make_frames(), prompts=("a red circle",), first_frame=make_frames(1)[0])
    ours, theirs = run(eager.engine, clip), run(exported.engine, clip)
    torch.testing.assert_close(theirs.edits[0].latents, ours.edits[0].latents, rtol=0, atol=1e-4)

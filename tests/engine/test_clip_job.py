"""The whole job on one clip: its result, its bookkeeping, its refusals."""

from __future__ import annotations

import copy
import json
import weakref
from dataclasses import replace

import pytest
import torch

from ddim_lightning import BDIA, Clip, DirectInversion, EditFriendly, FlowEdit, KVInjection, Outputs, UniInv
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.engine import clip_job
from ddim_lightning.engine.clip_job import ClipJob, make_clip_seed
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.trajectory import make_fingerprint, write_trajectory
from ddim_lightning.types import EditRequest
from tests.modules import make_module

PROMPTS = ("a red circle moving right", "a blue square moving left")


@pytest.fixture(scope="module")
def engine(tiny_model):
    module = make_module(str(tiny_model), num_inference_steps=3, inverter=UniInv(), editor=KVInjection())
    module.load("cpu")
    return module.engine


def make_clip(**fields):
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(0, 256, (9, 3, 24, 40), generator=generator, dtype=torch.uint8)
    return Clip(**({"id": "clip", "frames": frames, "prompts": PROMPTS} | fields))


def run(engine, clip, **options):
    """Run a job; what of `Outputs` is given goes there."""
    outputs = Outputs(**{name: options.pop(name) for name in set(options) & set(Outputs.__dataclass_fields__)})
    return ClipJob(engine, clip, **({"seed": 5, "guidance_scale": 6.0, "outputs": outputs} | options)).run()


def get_warnings(result):
    """All but that the clips of these tests have another size than the model was trained at."""
    return [sentence for sentence in result.warnings if not sentence.startswith("height, width: ")]


def test_result_of_a_clip(engine):
    clip = make_clip()
    result = run(engine, clip, save_trajectory=True)
    assert result.status == "done" and result.reason is None and result.seed == 5
    assert torch.equal(result.clip.frames, clip.frames)
    for frames in (result.vae_round_trip, result.reconstruction, *(edit.frames for edit in result.edits)):
        assert frames is not None and frames.shape == clip.frames.shape and frames.dtype == torch.uint8
    assert [edit.prompt for edit in result.edits] == list(PROMPTS)
    assert result.edits[0].latents.shape == (1, 3, 8, 6, 10)
    assert result.trajectory is not None and result.trajectory["levels"].shape == (4, 1, 3, 8, 6, 10)
    # Uni-Inv: a call a step and one for the residual; K/V injection: two guided rows and one
    # source row, twice.
    assert result.nfe == {"invert": 4, "reconstruct": 3, "edit": 18}
    assert set(result.seconds) == {"encode", "invert", "reconstruct", "edit", "decode", "measure"}
    assert all(seconds > 0 for seconds in result.seconds.values()) and result.peak_gib == {}
    assert set(result.metrics) == {"vae", "reconstruction"}


def test_metrics_are_measured_on_what_was_made(engine):
    clip = make_clip(prompts=())
    result = run(engine, clip)
    with torch.no_grad():
        ceiling = engine.decode(engine.encode(clip.frames))[0]
    error = (ceiling - clip.frames / 255.0).double().square().mean()
    assert result.metrics["vae"]["psnr"] == pytest.approx(float(-10 * error.log10()), abs=1e-4)
    with torch.no_grad():
        rebuilt = engine.decode(engine.reconstruct(engine.invert(engine.encode(clip.frames))))[0]
    for name, reference in (("psnr", clip.frames / 255.0), ("psnr_vs_vae", ceiling)):
        error = (rebuilt - reference).double().square().mean()
        assert result.metrics["reconstruction"][name] == pytest.approx(float(-10 * error.log10()), abs=1e-4)
    assert torch.equal(result.vae_round_trip, (ceiling * 255).round().to(torch.uint8))


def test_inversion_alone(engine):
    result = run(engine, make_clip(prompts=()), reconstruct=False, save_trajectory=True)
    assert result.nfe == {"invert": 4} and result.edits == []
    assert set(result.metrics) == {"vae"} and result.vae_round_trip is not None
    assert result.reconstruction is None and result.trajectory is not None


def test_same_seed_same_bytes_whatever_came_before(engine):
    engine = replace(engine, editor=KVInjection(initial="random"))
    first = run(engine, make_clip())
    run(engine, make_clip(prompts=("a cross",)), seed=9)
    torch.manual_seed(123)
    again, other = run(engine, make_clip()), run(engine, make_clip(), seed=6)
    swapped = run(engine, make_clip(prompts=PROMPTS[::-1]))
    assert torch.equal(first.edits[0].latents, again.edits[0].latents)
    assert torch.equal(first.edits[0].latents, swapped.edits[1].latents)
    assert not torch.equal(first.edits[0].latents, other.edits[0].latents)


def test_progress_covers_every_stage_and_step(engine):
    seen = []
    run(engine, make_clip(), on_progress=seen.append)
    labels = ["encode", "invert", "reconstruct", "edit 1/2", "edit 2/2", "decode"]
    assert list(dict.fromkeys(p.label for p in seen)) == labels
    for label in labels:
        ticks = [p for p in seen if p.label == label]
        assert [p.done for p in ticks] == list(range(ticks[0].total + 1))
    left = {p.label: p.nfe_left for p in seen}
    assert left == {"encode": 25, "invert": 21, "reconstruct": 18, "edit 1/2": 9, "edit 2/2": 0, "decode": 0}
    assert {p.nfe for p in seen if p.stage == "edit"} == {3.0}


def test_warnings_reach_the_result(engine):
    clip = make_clip(prompts=("a red zebra",), warnings=("frames 9..20 were not used",))
    assert get_warnings(run(engine, clip)) == [
        "frames 9..20 were not used",
        "prompt 'a red zebra': the tokenizer does not know 'zebra'",
    ]


def test_what_has_no_effect_is_said(engine):
    clip = make_clip(prompts=PROMPTS[:1], negative_prompt="a cross")
    unguided = "negative_prompt: has no effect at a guidance_scale of 1, which turns guidance off"
    assert get_warnings(run(engine, clip, guidance_scale=1.0)) == [unguided]
    assert get_warnings(run(engine, clip, guidance_scale=2.0)) == []
    engine = replace(engine, editor=KVInjection(velocity_mask=0.5))
    assert get_warnings(run(engine, make_clip(mask=torch.ones(9, 24, 40, dtype=torch.bool)))) == [
        "velocity_mask: has no effect on a clip that brings a mask"
    ]
    assert get_warnings(run(engine, make_clip())) == []


def test_what_the_model_was_not_trained_on_is_said(engine):
    native = {"frames": torch.zeros(9, 3, 64, 64, dtype=torch.uint8), "prompts": ()}
    assert run(engine, make_clip(**native)).warnings == []
    (size,) = run(engine, make_clip(prompts=())).warnings
    assert all(part in size for part in ("64 x 64", "24 x 40"))
    (count,) = run(engine, make_clip(frames=native["frames"][:5], prompts=())).warnings
    assert all(part in count for part in ("8k + 1", "got 5"))


def test_frames_that_would_be_lost_or_misread_are_refused(engine):
    frames = torch.zeros(9, 3, 24, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^frames: must be uint8.* got float32"):
        run(engine, make_clip(frames=frames.float() / 255))
    with pytest.raises(ValueError, match=r"^video: .*uint8.* got float32"):
        engine.encode(frames.float())
    for video in (frames[:8], frames[None, :7].float()):
        with pytest.raises(ValueError, match=rf"4k \+ 1, got {7 + (video.ndim == 4)}$"):
            engine.encode(video)
    assert engine.encode(frames[:1]).shape[1] == 1


@pytest.mark.parametrize(("part", "stage"), [("transformer", "invert"), ("vae", "decode")])
def test_values_that_are_not_finite_are_no_result(part, stage, tiny_model):
    module = make_module(str(tiny_model), num_inference_steps=2, editor=KVInjection())
    module.load("cpu")
    parts = module.components
    bias = parts.transformer.proj_out.bias if part == "transformer" else parts.vae.decoder.conv_out.conv.bias
    bias[0] = float("nan")
    with pytest.raises(ValueError, match=rf"{stage}: values must stay finite, got .* with dtype float32"):
        run(module.engine, make_clip())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 3, 24, 40), "frames: their count must be 4k \\+ 1 and at least 5, got 8"),
        ((1, 3, 24, 40), "frames: their count must be .* at least 5, got 1"),
        ((9, 3, 20, 40), "frames: height and width must be multiples of 8, got 20 x 40"),
        ((9, 1, 24, 40), "frames: must have shape \\(f, 3, h, w\\), got \\(9, 1, 24, 40\\)"),
    ],
)
def test_frames_that_the_model_cannot_take(shape, message, engine):
    with pytest.raises(ValueError, match=message):
        run(engine, make_clip(frames=torch.zeros(shape, dtype=torch.uint8)))


def test_seed_of_a_clip():
    seeds = {make_clip_seed(seed, name) for seed in (0, 1) for name in ("a", "b")}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    assert make_clip_seed(0, "a") == make_clip_seed(0, "a")


def test_edits_in_one_pass_share_the_source_row(engine):
    apart, together = run(engine, make_clip()), run(engine, make_clip(), batch_prompts=True)
    assert apart.nfe["edit"] == 3 * 2 * (2 + 1) and together.nfe["edit"] == 3 * (2 * 2 + 1) - 1
    # Both begin in the same latents: their first rows under the empty prompt are equal, and one.
    for one, other in zip(apart.edits, together.edits, strict=True):
        assert one.prompt == other.prompt
        torch.testing.assert_close(one.latents, other.latents, rtol=0, atol=1e-4)
    assert not torch.equal(together.edits[0].frames, together.edits[1].frames)


def test_progress_of_a_shared_pass_ends_with_nothing_left(engine):
    ticks = []
    run(engine, make_clip(), batch_prompts=True, on_progress=ticks.append)
    edits = [tick for tick in ticks if tick.stage == "edit"]
    assert {tick.label for tick in edits} == {"edits 1-2"} and [tick.done for tick in edits] == [0, 1, 2, 3]
    assert edits[0].nfe == 5 and ticks[-1].nfe_left == 0


def test_a_later_start_is_a_shorter_stage(engine):
    ticks, later = [], replace(engine, editor=KVInjection(first_step=2))
    result = run(later, make_clip(prompts=PROMPTS[:1]), on_progress=ticks.append)
    assert result.nfe["edit"] == 3 and [tick.total for tick in ticks if tick.stage == "edit"] == [1, 1]


def test_inversion_under_each_clips_own_source_prompt(engine):
    clip = make_clip(source_prompt=PROMPTS[1], prompts=())
    told = run(engine, clip, save_trajectory=True)
    own = run(replace(engine, inversion_prompt=None), clip, save_trajectory=True)
    with pytest.raises(ValueError, match=r"source_prompt: must be given .* got None"):
        run(replace(engine, inversion_prompt=None), make_clip())
    assert own.trajectory is not None
    assert told.trajectory is not None
    with torch.no_grad():
        expected = engine.invert(engine.encode(clip.frames), prompt=PROMPTS[1]).levels
    assert torch.equal(own.trajectory["levels"], expected) and not torch.equal(told.trajectory["levels"], expected)


def save(result, folder, engine):
    (folder / result.clip.id).mkdir()
    assert result.trajectory is not None
    path = folder / result.clip.id / "trajectory.safetensors"
    write_trajectory(path, result.trajectory, {"fingerprint": make_fingerprint(engine, result.clip, "")})


@pytest.mark.parametrize("inverter", [UniInv(), BDIA(), EditFriendly()])
def test_a_stored_trajectory_is_as_good_as_an_inversion(inverter, engine, tmp_path):
    engine = replace(engine, inverter=inverter)
    first = run(engine, make_clip(), save_trajectory=True)
    save(first, tmp_path, engine)
    again = run(engine, make_clip(), trajectory_dir=str(tmp_path))
    assert again.nfe["invert"] == 0 < first.nfe["invert"]
    assert torch.equal(first.reconstruction, again.reconstruction)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(first.edits, again.edits, strict=True))


def test_a_clip_without_a_stored_trajectory_is_inverted(engine, tmp_path):
    result = run(engine, make_clip(), trajectory_dir=str(tmp_path))
    assert result.nfe["invert"] == 4
    path = tmp_path / "clip" / "trajectory.safetensors"
    assert f"trajectory_dir: {path} is not there, so the clip was inverted" in result.warnings


@pytest.mark.parametrize("differs", ["clip", "inverter", "prompt", "schedule", "model"])
def test_a_trajectory_of_something_else_is_refused(differs, engine, tmp_path):
    made = run(engine, make_clip(), save_trajectory=True)
    save(made, tmp_path, engine)
    clip, schedule, other = make_clip(), engine.schedule, engine
    if differs == "clip":
        clip.frames = clip.frames.flip(0)
    if differs == "inverter":
        other = replace(engine, inverter=UniInv(first_step_iterations=1))
    if differs == "prompt":
        other = replace(engine, inversion_prompt="a circle")
    if differs == "schedule":
        other = replace(engine, schedule=NoiseSchedule(schedule.timesteps[1:], schedule.angles[1:]))
    if differs == "model":
        transformer = copy.deepcopy(engine.components.transformer)
        transformer.proj_out.weight.data += 1e-3
        other = replace(engine, components=replace(engine.components, transformer=transformer))
    with pytest.raises(ValueError, match=f"trajectory_dir: .* must be of this run's {differs} "):
        run(other, clip, trajectory_dir=str(tmp_path))


@pytest.mark.parametrize("batch_prompts", [False, True])
def test_edits_stay_within_the_clips_mask(batch_prompts, engine):
    mask = torch.zeros(9, 24, 40, dtype=torch.bool)
    mask[3, 4:8, 8:12] = True  # one latent: frames 1 .. 4, rows 4 .. 7, columns 8 .. 11
    result = run(engine, make_clip(mask=mask), batch_prompts=batch_prompts, save_trajectory=True)
    assert result.trajectory is not None
    inside = torch.zeros(1, 3, 8, 6, 10, dtype=torch.bool)
    inside[:, 1, :, 1, 2] = True
    for edit in result.edits:
        changed = edit.latents != result.trajectory["levels"][-1]
        assert bool(changed[inside].all()) and not bool(changed[~inside].any())


@pytest.mark.parametrize(
    ("editor", "nfe"),
    [
        (KVInjection(outside="source", steps=(0, 1)), 3 * 3),
        (KVInjection(outside="source", source_rows="paired"), 3 * 4),
        (DirectInversion(outside="source", replay_steps=(0, 1)), 3 * 3),
        (FlowEdit(outside="source", first_step=0, num_noise_samples=2, source_guidance=1.0), 3 * 2 * 3),
        (FlowEdit(outside="source", first_step=0, kv_scale=0.1, velocity_mask=0.8), 3 * 4 + 2 * 2),
    ],
    ids=repr,
)
def test_edits_that_compute_what_is_inside_alone(editor, nfe, engine):
    """Another method than where all is computed: the source stands outside; but not by much, and with the same mask."""
    mask = torch.zeros(9, 24, 40, dtype=torch.bool)
    mask[:, 4:20, 8:24] = True
    clip = make_clip(
        mask=None if editor.finds_mask(EditRequest("")) else mask, prompts=PROMPTS[:1], source_prompt="a blue circle"
    )
    seen, inside = [], replace(engine, editor=editor)
    result = run(inside, clip, save_trajectory=True, on_progress=seen.append)
    assert result.nfe["edit"] == nfe and seen[-1].nfe_left == 0 and get_warnings(result) == []
    everywhere = run(replace(engine, editor=replace(editor, outside="edit")), clip)
    clean, edited, other = result.trajectory["levels"][-1], result.edits[0].latents, everywhere.edits[0].latents
    kept = edited == clean
    if clip.mask is not None:
        changes = torch.zeros(1, 3, 8, 6, 10, dtype=torch.bool)
        changes[:, :, :, 1:5, 2:6] = True
        assert torch.equal(~kept, changes)
    assert torch.equal(kept, other == clean) and not torch.equal(edited, other)
    assert (edited - other).norm() < 0.5 * (edited - clean).norm()
    together = run(inside, replace(clip, prompts=PROMPTS), batch_prompts=True).edits[0].latents
    torch.testing.assert_close(together, edited, rtol=0, atol=1e-4)


def test_rows_in_groups_make_the_same_edits(engine):
    editor = KVInjection(outside="source", kv_scale=0.5)
    mask = torch.zeros(9, 24, 40, dtype=torch.bool)
    mask[2:5, 4:20, 8:24] = True
    for clip in (make_clip(), make_clip(mask=mask)):
        at_work = engine if clip.mask is None else replace(engine, editor=editor)
        whole = run(at_work, clip, batch_prompts=True)
        try:
            engine.network.choose_rows = lambda *_: 1
            parts = run(at_work, clip, batch_prompts=True)
        finally:
            engine.network.choose_rows = lambda layout, *_: layout.rows
        assert parts.nfe == whole.nfe
        for one, other in zip(parts.edits, whole.edits, strict=True):
            torch.testing.assert_close(one.latents, other.latents, rtol=0, atol=1e-4)


def test_taking_the_outside_from_the_source_without_a_mask_has_no_effect_and_says_so(engine):
    (warning,) = get_warnings(
        run(replace(engine, editor=KVInjection(outside="source")), make_clip(prompts=PROMPTS[:1]))
    )
    assert warning.startswith("outside: ")


def test_a_mask_of_another_size_is_refused(engine):
    with pytest.raises(ValueError, match=r"mask: must have the frames, height and width of the clip, \(9, 24, 40\)"):
        run(engine, make_clip(mask=torch.ones(9, 40, 24, dtype=torch.bool)))


def test_a_mask_that_lets_nothing_change_is_refused(engine):
    with pytest.raises(ValueError, match="mask: must be true somewhere"):
        run(engine, make_clip(mask=torch.zeros(9, 24, 40, dtype=torch.bool)))


def test_latents_of_other_frames_are_refused(engine):
    latents = engine.encode(make_clip().frames)
    with pytest.raises(ValueError, match=r"latents: must be those of the clip's frames, \(1, 3, 8, 6, 10\), got"):
        run(engine, make_clip(latents=latents[:, :2]))
    with pytest.raises(ValueError, match=r"latents: must have shape .*axis 1 has the channels"):
        run(engine, make_clip(latents=latents.transpose(1, 2)))
    with pytest.raises(ValueError, match="latents: must be finite"):
        run(engine, make_clip(latents=latents / 0))


def test_diagnosis_of_the_inversion(engine):
    result = run(engine, make_clip(), save_trajectory=True)
    diagnosis = result.diagnosis
    assert result.trajectory is not None
    noise = result.trajectory["levels"][0].double()
    assert diagnosis["noise"]["std"] == pytest.approx(float(noise.std(correction=0)))
    assert len(diagnosis["level_errors"]) == 4 and diagnosis["level_errors"][0] == 0.0
    assert set(diagnosis["color"]) == {"source", "reconstruction"} and isinstance(diagnosis["problems"], list)
    json.dumps(diagnosis)
    alone = run(engine, make_clip(prompts=()), reconstruct=False).diagnosis
    assert set(alone) == {"noise", "problems"}


def test_a_trajectory_is_let_go_of_before_decoding(engine, monkeypatch):
    """That of CogVideoX-5B and the way back along it take 0.4 GiB, which a small GPU wants for the decoder."""
    alive, seen, stream = [], [], InversionEngine.stream

    def watch(function):
        def run(*arguments, **options):
            made = function(*arguments, **options)
            alive.append(weakref.ref(made.levels if isinstance(made, Inversion) else made))
            return made

        return run

    for name in ("invert", "keep_levels"):
        monkeypatch.setattr(clip_job, name, watch(getattr(clip_job, name)))
    monkeypatch.setattr(
        InversionEngine, "stream", lambda *call: seen.append([one() is not None for one in alive]) or stream(*call)
    )
    run(engine, make_clip(prompts=PROMPTS[:1]))
    assert seen == [[False, False]] * 3


@pytest.mark.parametrize("together", [False, True])
def test_edits_of_one_inversion_may_have_source_prompts_of_their_own(engine, together):
    engine = replace(engine, editor=FlowEdit(first_step=1))
    sources = ("a cross", "a triangle")
    clip = make_clip(source_prompt="a cross", source_prompts=sources)
    result = run(engine, clip, batch_prompts=together, reconstruct=False)
    for edit, prompt, source in zip(result.edits, PROMPTS, sources, strict=True):
        alone = run(engine, make_clip(prompts=(prompt,), source_prompt=source), reconstruct=False)
        assert torch.allclose(edit.latents, alone.edits[0].latents, atol=1e-4)
    assert not torch.equal(result.edits[1].latents, run(engine, make_clip(source_prompt="a cross")).edits[1].latents)


def test_source_prompts_are_as_many_as_prompts(engine):
    with pytest.raises(ValueError, match="source_prompts: must be empty or one for each of 2 prompts, got 1"):
        run(engine, make_clip(source_prompts=("a cross",)))

"""Which stages a clip goes through, and what they cost: an inversion is made where something asks for one alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from ddim_lightning import Clip, Denoise, DirectInversion, EditFriendly, FlowEdit, KVInjection, Outputs, UniInv
from ddim_lightning.engine.clip_job import ClipJob
from ddim_lightning.engine.clip_plan import make_plan
from ddim_lightning.engine.fast import make_fast
from ddim_lightning.types import EditRequest
from tests.modules import make_module

FLOW = FlowEdit(first_step=1, num_noise_samples=2)
REST = {"encode", "edit", "decode", "measure"}


@pytest.fixture(scope="module")
def engine(tiny_model):
    module = make_module(str(tiny_model), num_inference_steps=3, inverter=UniInv(), editor=FLOW)
    module.load("cpu")
    return module.engine


def make_clip(num_frames=5, **fields):
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(0, 256, (num_frames, 3, 16, 24), generator=generator, dtype=torch.uint8)
    prompts = ("a red circle moving right", "a blue square moving left")
    return Clip(**({"id": "clip", "frames": frames, "prompts": prompts, "source_prompt": "a cross"} | fields))


def make_job(engine, clip, **options):
    own = {name: options.pop(name) for name in ("batch_prompts", "on_progress") if name in options}
    outputs = Outputs(**{"reconstruct": False} | options)
    return ClipJob(engine, clip, seed=5, guidance_scale=2.0, outputs=outputs, **own)


def run(engine, clip, **options):
    return make_job(engine, clip, **options).run()


@pytest.mark.parametrize(
    ("editor", "num_frames", "batch_prompts"),
    [(FLOW, 5, False), (FLOW, 13, True), (Denoise(initial="random", first_step=1), 5, True)],
)
def test_an_edit_without_an_inversion_is_the_edit_with_one(editor, num_frames, batch_prompts, engine):
    engine, clip, seen = replace(engine, editor=editor), make_clip(num_frames), []
    asked = run(engine, clip, save_trajectory=True, batch_prompts=batch_prompts)
    alone = run(engine, clip, on_progress=seen.append, batch_prompts=batch_prompts)
    assert asked.nfe.keys() == {"invert", "edit"}
    assert set(asked.seconds) == {*REST, "invert"}
    assert alone.nfe == {"edit": asked.nfe["edit"]}
    assert set(alone.seconds) == REST
    assert alone.diagnosis == {} and alone.trajectory is None and alone.reconstruction is None
    assert alone.metrics == asked.metrics and alone.windows == asked.windows
    for one, other in zip(alone.edits, asked.edits, strict=True):
        assert torch.equal(one.latents, other.latents) and torch.equal(one.frames, other.frames)
        assert one.metrics == other.metrics
    assert {tick.stage for tick in seen} == {"encode", "edit", "decode"}
    assert seen[0].nfe_left == alone.nfe["edit"] and seen[-1].nfe_left == 0


@dataclass(frozen=True)
class Own(FlowEdit):
    """An editor that does not say what it reads."""


def make_mask():
    mask = torch.zeros(5, 16, 24, dtype=torch.bool)
    mask[:, :8] = True
    return mask


@pytest.mark.parametrize(
    ("editor", "inverter", "fields", "outputs", "inverts"),
    [
        (FLOW, UniInv(), {}, {}, False),
        (FLOW, UniInv(), {}, {"reconstruct": True}, True),
        (FLOW, UniInv(), {}, {"save_trajectory": True}, True),
        (FLOW, UniInv(), {}, {"trajectory_dir": "nowhere"}, False),
        (FLOW, UniInv(), {"prompts": ()}, {}, True),
        (FLOW, EditFriendly(), {}, {}, False),
        (FLOW, UniInv(), {"mask": make_mask()}, {}, False),
        (replace(FLOW, velocity_mask=0.5), UniInv(), {}, {}, True),
        (replace(FLOW, velocity_mask=0.5), UniInv(), {"mask": make_mask()}, {}, False),
        (Own(), UniInv(), {}, {}, True),
        (Denoise(), UniInv(), {}, {}, True),
        (Denoise(initial="random"), UniInv(), {}, {}, False),
        (Denoise(initial="random"), UniInv(), {"mask": make_mask()}, {}, True),
        (Denoise(initial="random"), EditFriendly(), {}, {}, True),
        (Denoise(initial="k_rnr", first_step=1), UniInv(), {}, {}, True),
        (KVInjection(initial="random"), UniInv(), {}, {}, True),
        (KVInjection(initial="random", kv_scale=0.0), UniInv(), {}, {}, False),
        (DirectInversion(initial="random"), UniInv(), {}, {}, True),
    ],
)
def test_what_asks_for_an_inversion(editor, inverter, fields, outputs, inverts, engine):
    engine, clip = replace(engine, editor=editor, inverter=inverter), make_clip(**fields)
    outputs = Outputs(**{"reconstruct": False} | outputs)
    requests = [EditRequest(prompt, source_prompt="a cross", guidance_scale=2.0) for prompt in clip.prompts]
    plan = make_plan(engine, clip, requests, outputs, batch_prompts=False, num_windows=2)
    assert plan.inverts == inverts
    assert plan.invert_nfe == (2 * inverter.count_nfe(3) if inverts else 0)
    assert plan.nfe == plan.invert_nfe + plan.edit_nfe + (2 * 3 if outputs.reconstruct else 0)


def test_the_bundled_models_recommended_edit_costs_its_edit_alone():
    module = make_module()
    module.load("cpu")
    clip = make_clip(frames=torch.zeros(9, 3, 64, 64, dtype=torch.uint8), prompts=("a red circle",))
    exact, (editor, step_cache) = module.engine, make_fast(module.engine.editor, None)
    for engine, edit_nfe in ((exact, 110), (replace(exact, editor=editor, step_cache=step_cache), 42)):
        assert make_job(engine, clip).nfe_left == edit_nfe
        assert make_job(engine, clip, reconstruct=True).nfe_left == edit_nfe + engine.inverter.count_nfe(50) + 50


def test_a_stored_trajectory_that_nothing_reads_is_not_read_and_that_is_said(engine, tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "trajectory.safetensors").write_bytes(b"of something else")
    result = run(engine, make_clip(), trajectory_dir=str(tmp_path))
    (said,) = [sentence for sentence in result.warnings if sentence.startswith("trajectory_dir: ")]
    assert "no effect" in said and "FlowEdit" in said and "invert" not in result.nfe
    with pytest.raises(Exception, match=r"(?i)header"):
        run(engine, make_clip(), trajectory_dir=str(tmp_path), reconstruct=True)


@pytest.mark.parametrize("together", [False, True])
def test_edits_that_share_no_description_are_counted_as_they_are_made(engine, together):
    clip = make_clip(source_prompts=("a cross", "a triangle"))
    job = make_job(engine, clip, batch_prompts=together)
    planned = job.nfe_left
    assert job.run().nfe["edit"] == planned

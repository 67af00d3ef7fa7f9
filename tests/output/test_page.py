"""The page of a run on the disk: its numbers, its links, and whose file it may replace."""

from __future__ import annotations

import base64
import json
import math
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from ddim_lightning.cli.main import main
from ddim_lightning.output.folder import read_results
from ddim_lightning.output.page import write_page
from ddim_lightning.output.record import make_record
from ddim_lightning.report.cards import ReportedRun, make_cards
from ddim_lightning.report.numbers import list_numbers
from ddim_lightning.report.page import make_columns
from ddim_lightning.types import ClipResult, UnreadableClip
from tests.clip_results import make_result, make_small_result, write_run

HOSTILE = "</script><script>alert(1)</script>\"'&<!--"


class Page(HTMLParser):
    """The scripts, links and videos of a page, those of its cards too."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.links, self.videos, self.shown = [], [], [], []
        self.within = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.within = attributes if tag == "script" else None
        if "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "video":
            self.videos.append(attributes["data-src"])

    def handle_endtag(self, tag):
        self.within = None

    def handle_data(self, data):
        if self.within is None:
            self.shown.append(data)
            return
        self.scripts.append((self.within.get("type"), data))
        if self.within.get("type") == "text/html":
            card = Page(data)
            assert not card.scripts
            self.links += card.links
            self.videos += card.videos
            self.shown += card.shown

    @property
    def numbers(self):
        return next(json.loads(data) for kind, data in self.scripts if kind == "application/json")


def read_page(path):
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two clips, one of an unreadable one, and names that are no part of an address."""
    hostile = make_result("ü a b", warnings=[HOSTILE])
    hostile.clip.prompts = (HOSTILE, "\udce9 x")
    hostile.edits[0].prompt = HOSTILE
    bad = ClipResult(UnreadableClip("bad", "bad.mp4", HOSTILE), "skipped", HOSTILE)
    other = make_small_result("b", diagnosis={"noise": {"std": 0.9}, "level_errors": [0.0, 0.01], "problems": []})
    return write_run(tmp_path_factory.mktemp("runs") / "50% run #1", hostile, bad, other)


def test_the_numbers_of_the_page_are_those_of_the_list(folder):
    numbers = read_page(folder / "index.html").numbers
    done = [list_numbers(record) for record in read_results(folder) if record["status"] == "done"]
    assert set(numbers) == {key for one in done for key in one}
    for key, values in numbers.items():
        assert [math.inf if value == "Infinity" else value for value in values] == [one.get(key) for one in done], key


def test_texts_are_escaped_and_no_script_but_ours_is_there(folder):
    page = read_page(folder / "index.html")
    assert [kind for kind, _ in page.scripts if kind != "text/html"] == ["application/json", None]
    shown = [text.strip() for text in page.shown]
    assert shown.count(HOSTILE) == 3  # the reason, the prompt, the warning
    assert r"\xe9 x" in shown
    assert "http" not in "".join(page.links + page.videos)


def test_links_lead_to_the_files(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    path = write_page([folder, tmp_path / "copy"], tmp_path / "both.html")
    for made in (folder / "index.html", path):
        links = [link for link in read_page(made).links if not link.startswith(("#", "data:"))]
        assert len(links) > 5
        assert all((made.parent / unquote(link)).is_file() for link in links), links


def test_embedded_videos_are_the_files(folder, tmp_path):
    page = read_page(write_page([folder], tmp_path / "one.html", embed=True))
    held = [base64.b64decode(video.removeprefix("data:video/mp4;base64,")) for video in page.videos]
    assert sorted(held) == sorted(path.read_bytes() for path in folder.glob("*/*.mp4"))
    assert all(link.startswith(("#", "data:")) for link in page.links)


def test_the_folder_of_a_page_is_made_and_one_that_cannot_be_is_told(folder, tmp_path):
    assert write_page([folder], tmp_path / "new" / "folder" / "one.html").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"^output: .*file"):
        write_page([folder], tmp_path / "file" / "one.html")


def test_two_runs_are_paired_by_id(folder, tmp_path):
    better = make_small_result("b", metrics={"vae": {"psnr": math.inf, "ssim": 0.75}, "reconstruction": {}})
    second = write_run(tmp_path / "second", better, make_small_result("only here"))
    numbers = read_page(write_page([folder, second])).numbers
    assert numbers["metrics.vae.ssim A"] == [1.0, None, 1.0]  # of b, only here, ü a b
    assert numbers["metrics.vae.ssim B"] == [0.75, 1.0, None]
    assert numbers["metrics.vae.ssim B - A"] == [-0.25, None, None]
    assert numbers["metrics.vae.psnr B - A"] == [0, None, None]  # both are equal videos


def test_means_of_two_runs_are_of_the_clips_that_both_have():
    def make(name, *values):
        records = [
            make_record(make_small_result(clip, metrics={"vae": {"psnr": psnr}, "reconstruction": {}}), {})
            for clip, psnr in values
        ]
        return ReportedRun(name, records, lambda clip, file: None, lambda clip, file: None)

    first = make("A", ("a", 10.0), ("b", 30.0), ("c", math.inf))
    second = make("B", ("b", 36.0), ("c", 40.0), ("d", 90.0))
    key = "metrics.vae.psnr"
    alone = {column.key: column for column in make_columns(make_cards([first]), 1)}
    assert (alone[key].values, alone[key].mean) == ([10.0, 30.0, math.inf], 20.0)  # equal videos have no decibels
    both = {column.key: column for column in make_columns(make_cards([first, second]), 2)}
    assert [both[f"{key} {view}"].mean for view in ("A", "B", "B - A")] == [30.0, 36.0, 6.0]
    unlike = {column.key: column for column in make_columns(make_cards([first, make("B", ("d", 1.0))]), 2)}
    assert [unlike[f"{key} {view}"].mean for view in ("A", "B", "B - A")] == [None] * 3


def test_what_was_skipped_and_what_is_drawn_says_of_which_run(tmp_path):
    bad = ClipResult(UnreadableClip("bad", "bad.mp4", "broken"), "skipped", "broken")
    levels = {"noise": {}, "level_errors": [0.0, 0.01], "problems": []}
    first = write_run(tmp_path / "first", make_small_result("a"))
    second = write_run(tmp_path / "second", make_small_result("b", diagnosis=levels), bad)
    path = write_page([first, second])
    assert "1 clip was skipped in B" in [text.strip() for text in read_page(path).shown]
    assert 'class="curve curve-2"' in path.read_text("utf-8")
    assert 'class="curve curve-1"' not in path.read_text("utf-8")


def test_a_page_follows_runs_that_go_on(tmp_path):
    write_run(tmp_path, make_small_result("a"))
    write_run(tmp_path, make_small_result("b"))
    assert len(read_page(tmp_path / "index.html").numbers["seconds.total"]) == 2
    assert "earlier run" in read_page(tmp_path / "index.html").shown
    before = (tmp_path / "index.html").read_text("utf-8")
    (tmp_path / "index.html").unlink()
    assert main(["report", str(tmp_path)]) == 0
    assert read_page(tmp_path / "index.html").numbers == Page(before).numbers
    (tmp_path / "results.jsonl").unlink()  # the clips' own records will do
    write_page([tmp_path])
    assert read_page(tmp_path / "index.html").numbers == Page(before).numbers


def test_nobody_elses_page_is_replaced_and_the_run_goes_on(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.warns(UserWarning, match="no report was written: .*index.html"):
        write_run(tmp_path, make_small_result("a"))
    assert (tmp_path / "index.html").read_text() == "mine"
    assert [record["id"] for record in read_results(tmp_path)] == ["a"]
    with pytest.raises(FileExistsError, match=r"^output: .*index\.html"):
        write_page([tmp_path])


def test_a_list_of_somebody_else_leads_to_no_other_file(tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    write_run(tmp_path / "run", make_small_result("a"), make_small_result("b"))
    path = tmp_path / "run" / "results.jsonl"
    text = path.read_text("utf-8").replace('"source": "source.mp4"', '"source": "../../secret.mp4"')
    path.write_text(text.replace('"id": "b"', '"id": "../.."'), "utf-8")
    (tmp_path / "run" / "a" / "source.mp4").unlink()
    (tmp_path / "run" / "a" / "source.mp4").symlink_to(secret)
    page = read_page(write_page([tmp_path / "run"], embed=True))
    assert page.videos == []
    assert "no file" in page.shown


def test_what_is_no_run_is_refused(tmp_path, capsys):
    for words in (["report", str(tmp_path)], ["report", str(tmp_path / "gone")]):
        assert main(words) == 1
        assert capsys.readouterr().err.startswith("error: run: must be the output folder of a run")
    assert not list(tmp_path.iterdir())

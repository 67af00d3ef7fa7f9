"""Pages of runs that went wrong or are out of the ordinary, in a real browser: none breaks, and all can be read."""

from __future__ import annotations

import json
import math
import shutil
import time

import pytest

from ddim_lightning.output.folder import read_results
from ddim_lightning.output.page import write_page
from ddim_lightning.types import ClipResult, Edit, UnreadableClip
from tests.browser import FIND_OVERLAPS, TIMES, get_card, keep_shot, wait
from tests.clip_results import make_frames, make_result, make_small_result, write_run

pytestmark = pytest.mark.slow

TEXTS = (
    '<script>window.hacked = 1</script> "><img src=x onerror="window.hacked=1">',
    "w" * 700,
    " ".join(["a long description of everything that is to be seen"] * 40),
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \U0001f431 \U0001f3f3\ufe0f\u200d\U0001f308 e\u0301\u0301",
    "</script></template><!-- {{ 7 * 7 }} ${7 * 7} &amp; \u202e",
)
WINDOWS = pytest.mark.parametrize("window", [{"width": 390, "dark": True}, {"width": 1400}], ids=["phone", "desk"])
SHOWN = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"


def skip(name, reason):
    return ClipResult(UnreadableClip(name, f"{name}.mp4", reason), "skipped", reason)


def change_records(folder, change):
    """Write what no run of ours writes into the list of a run, and its page."""
    lines = []
    for k, record in enumerate(read_results(folder)):
        change(k, record)
        lines.append(json.dumps(record) + "\n")
    (folder / "results.jsonl").write_text("".join(lines), "utf-8")
    return write_page([folder])


def look(browser, opened, path, window, name, cards=1):
    """Open a page, see its first cards, keep a screenshot, and see that nothing overlaps and nobody has got in."""
    opened(path, **window)
    for index in range(cards):
        get_card(browser, index)
    browser.execute_script("scrollTo(0, 0)")
    keep_shot(browser, f"hard-{name}-{window['width']}")
    assert browser.execute_script(FIND_OVERLAPS) == []
    assert browser.execute_script("return typeof window.hacked") == "undefined"


@WINDOWS
def test_prompts_of_any_kind(browser, opened, tmp_path, window):
    results = []
    for k, text in enumerate(TEXTS):
        result = make_result(f"clip {k}", warnings=[text])
        result.clip.prompts = (text, TEXTS[k - 1])
        result.clip.source_prompt = text
        for edit, prompt in zip(result.edits, result.clip.prompts, strict=True):
            edit.prompt = prompt
        results.append(result)
    folder = write_run(tmp_path / TEXTS[3], *results, skip("bad", TEXTS[1]))
    look(browser, opened, folder / "index.html", window, "prompts", cards=len(TEXTS))
    shown = browser.execute_script(SHOWN, ".prompt")
    assert {text for text in shown if "\\u202e" not in text} == {*TEXTS[:-1]}
    heights = "return [...document.querySelectorAll('.prompt')].map((one) => one.offsetHeight)"
    assert max(browser.execute_script(heights)) < 160  # the rest of a long one is scrolled to
    browser.find_element("id", "find").send_keys("\u05e9\u05dc\u05d5\u05dd")
    assert len([card for card in browser.find_elements("class name", "card") if card.is_displayed()]) == 2


@WINDOWS
@pytest.mark.parametrize("skipped", [0, 25])
def test_no_clip_at_all(browser, opened, tmp_path, window, skipped):
    reasons = [f"videos/{k}.mp4: is not a video that can be read" for k in range(skipped)]
    folder = write_run(tmp_path / "run", *(skip(f"clip-{k:02d}", reason) for k, reason in enumerate(reasons)))
    look(browser, opened, folder / "index.html", window, f"none-{skipped}", cards=0)
    assert browser.execute_script(SHOWN, ".skipped dd") == reasons
    assert all(one.is_displayed() for one in browser.find_elements("css selector", ".skipped dl"))
    assert browser.find_element("id", "theme").is_displayed()
    assert not browser.find_element("id", "sort").is_displayed()  # nothing to sort, to find or to play
    browser.find_element("tag name", "body").send_keys("j k")  # keys have nothing to work on


@WINDOWS
def test_one_clip(browser, opened, tmp_path, window):
    look(browser, opened, write_run(tmp_path / "run", make_result()) / "index.html", window, "one")
    assert browser.find_elements("css selector", "#table tfoot") == []  # its mean would be itself


def test_names_of_clips_of_any_kind(browser, opened, tmp_path):
    names = ["two words", "50% #1", 'it\'s "so"', "a?b&c=<b>", "\u05e9\u05dc\u05d5\u05dd", "x" * 64]
    folder = write_run(tmp_path / "50% run #1 it's", *(make_result(name) for name in (names[0], *names[4:])))
    lines = (folder / "results.jsonl").read_text("utf-8").splitlines()
    lines += [json.dumps({**json.loads(lines[0]), "id": name}) for name in names[1:4]]  # those of another program
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    opened(write_page([folder]))
    ids = browser.execute_script("return [...document.querySelectorAll('h3')].map((one) => one.firstChild.textContent)")
    assert sorted(ids) == sorted(names)
    for name in (names[0], *names[4:]):
        assert len(browser.execute_script(TIMES, get_card(browser, ids.index(name)))) == 4
    assert browser.execute_script(FIND_OVERLAPS) == []
    for link in browser.find_elements("css selector", "#table tbody a"):
        assert browser.find_elements("css selector", link.get_attribute("href").rpartition("/index.html")[2])
    keep_shot(browser, "hard-names")


def test_numbers_of_any_kind(browser, opened, tmp_path):
    values = [31.5, None, math.inf, -math.inf, math.nan, 0, -5, 1e300, True, "31"]
    folder = write_run(tmp_path / "run", *(make_small_result(f"clip-{k}") for k in range(len(values))))

    def change(k, record):
        record["metrics"] = {"vae": {"psnr": values[k], "ssim": 0.5}, "reconstruction": {}, "edits": []}
        record["diagnosis"] = {"level_errors": [0.0, values[k], 0.1]}

    opened(change_records(folder, change))
    key = "metrics.vae.psnr"
    browser.find_element("css selector", f"[data-sort='{key}']").click()
    rows = "return [...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[1].textContent)"
    assert browser.execute_script(rows) == ["-5.00", "0.00", "31.50", "1e+300", "equal", "equal", *["-"] * 4]
    assert browser.execute_script(FIND_OVERLAPS) == []


@WINDOWS
def test_videos_of_any_shape(browser, opened, tmp_path, window):
    shapes = [(320, 96), (32, 512), (48, 48)]
    results = []
    for k, (height, width) in enumerate(shapes):
        frames = make_frames(k, h=height, w=width)
        results.append(make_small_result(f"clip-{k}", reconstruction=frames, vae_round_trip=frames))
        results[-1].clip.frames = frames
    folder = write_run(tmp_path / "run", *results)
    look(browser, opened, folder / "index.html", window, "shapes", cards=len(shapes))
    box = "const box = arguments[0].getBoundingClientRect(); return [box.height, box.width]"
    for k, (height, width) in enumerate(shapes):
        screen = get_card(browser, k).find_element("class name", "screen")
        high, wide = browser.execute_script(box, screen)
        assert high <= 0.8 * browser.execute_script("return innerHeight") + 1
        assert high / wide == pytest.approx(height / width, rel=0.03) or height > 2 * width


@WINDOWS
def test_forty_edits_of_a_clip(browser, opened, tmp_path, window):
    result = make_result("many")
    edit = result.edits[0]
    result.edits = [
        Edit(f"edit number {k}", edit.frames, edit.latents, {"psnr_vs_source": 20.0 + k}) for k in range(40)
    ]
    result.clip.prompts = tuple(one.prompt for one in result.edits)
    folder = write_run(tmp_path / "run", result, make_small_result("none"))
    look(browser, opened, folder / "index.html", window, "forty")
    card = get_card(browser)
    card.find_element("class name", "scrub").send_keys("\ue010")  # end
    times = browser.execute_script(TIMES, card)
    assert len(times) == 42 and len(set(times)) == 1 and times[0] > 0
    assert browser.execute_script(SHOWN, "#clip-0 .prompt")[1:] == [one.prompt for one in result.edits]


def test_a_run_that_was_moved_plays_and_a_page_alone_says_that_it_cannot(browser, opened, tmp_path):
    folder = write_run(tmp_path / "run", make_result())
    moved = tmp_path / "else where" / "50% #2"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    opened(moved / "index.html")
    get_card(browser).find_element("class name", "play").click()
    wait(browser, f"{TIMES}.every((time) => time > 0.1)", get_card(browser))
    shutil.copy(moved / "index.html", tmp_path / "alone.html")
    opened(tmp_path / "alone.html")
    assert (
        wait(browser, f"const said = (() => {{ {SHOWN} }})(); return said.length === 4 && said", ".gone")
        == ["cannot be played"] * 4
    )
    browser.find_element("class name", "play").click()
    keep_shot(browser, "hard-alone")
    time.sleep(0.2)
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert all("ERR_FILE_NOT_FOUND" in message for message in messages), messages


@WINDOWS
def test_runs_of_unlike_clips_side_by_side(browser, opened, tmp_path, window):
    first = write_run(tmp_path / "first", make_result("both"), make_small_result("a only"), skip("odd", "broken in A"))
    better = make_result("both", metrics={"vae": {"psnr": 30.0, "ssim": 0.5}, "reconstruction": {"psnr": 32.25}})
    second = write_run(tmp_path / "second", better, make_small_result("odd"), skip("bad", "broken in B"))
    look(browser, opened, write_page([first, second]), window, "unlike", cards=2)
    assert browser.execute_script(SHOWN, ".skipped summary") == ["1 clip was skipped in A", "1 clip was skipped in B"]
    badges = "return [...document.querySelectorAll('h3')].map((one) => [...one.children].map((it) => it.textContent))"
    assert browser.execute_script(badges) == [["only in A", ""], [""], ["only in B", ""]]

"""The page of a run in a real browser: what a person sees, moves and hears nothing of a network from."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from lightning import Trainer

from ddim_lightning import DDIMInversionModule, Schedule, VideoWriter
from ddim_lightning.output.folder import read_results
from ddim_lightning.output.page import write_page
from ddim_lightning.report.numbers import format_number, list_numbers
from ddim_lightning.tiny.demo import EDITS
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule
from tests.browser import FIND_OVERLAPS, TIMES, get_card, keep_shot, wait
from tests.page_numbers import check_cards

pytestmark = pytest.mark.slow

COVERED = """
const bar = document.querySelector(".bar"), table = document.querySelector(".scroll"), covered = [];
for (let below = -20; below < 160; below += 10) {
  scrollTo(0, 0);
  scrollTo(0, table.getBoundingClientRect().bottom - below);
  for (const one of bar.querySelectorAll("input, select, button")) {
    const box = one.getBoundingClientRect();
    const top = document.elementFromPoint(box.left + 8, box.top + box.height / 2);
    if (!top?.closest(".bar")) covered.push(`${one.id} by ${top?.outerHTML.slice(0, 80)}`);
  }
}
return covered;
"""
HOSTILE = '<script>window.hacked = 1</script> "><img src=x onerror="window.hacked=1">'
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)


def run(folder, steps):
    """A run as `demo` makes it, with fewer clips and steps."""
    module = DDIMInversionModule("tiny", schedule=Schedule(num_inference_steps=steps))
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[VideoWriter(str(folder))], **QUIET)
    trainer.predict(module, ShapesDataModule(predict_clips=3, edits=EDITS), return_predictions=False)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return run(root / "ten steps", 10), run(root / "five steps", 5)


@pytest.fixture(scope="module")
def thousand(runs, tmp_path_factory):
    """A folder of a thousand clips, twenty of them broken, made up from those of a run."""
    folder, records = tmp_path_factory.mktemp("runs") / "thousand", read_results(runs[0])
    folder.mkdir()
    with (folder / "results.jsonl").open("w") as file:
        for i in range(1000):
            record = copy.deepcopy(records[i % len(records)])
            place, record["id"] = runs[0] / record["id"], f"clip-{i:04d}"
            record["metrics"]["reconstruction"]["psnr"] = 20 + (i * 37 % 1000) / 100
            record["prompts"] = [HOSTILE, f"prompt {i}"]
            if i % 50 == 49:
                record |= {"status": "skipped", "reason": f"it is broken: {HOSTILE}", "files": {"input": "x.mp4"}}
                record |= {"metrics": {"vae": {}, "reconstruction": {}, "edits": []}, "frames": None, "fps": None}
            else:
                (folder / record["id"]).mkdir()
                for path in place.iterdir():
                    os.link(path, folder / record["id"] / path.name)
            file.write(json.dumps(record) + "\n")
    write_page([folder])
    return folder


def test_videos_play_in_step(browser, opened, runs):
    opened(runs[0] / "index.html")
    card = get_card(browser)
    card.find_element("class name", "play").click()
    wait(browser, f"{TIMES}.every((time) => time > 0.15)", card)
    spreads = []
    for _ in range(12):
        times = browser.execute_script(TIMES, card)
        assert len(times) == 4
        spreads.append(max(times) - min(times))
        time.sleep(0.05)
    assert sorted(spreads)[len(spreads) // 2] < 1 / 8, spreads  # a frame; at the seam of the loop it may be more
    card.find_element("class name", "play").click()
    time.sleep(0.3)
    assert len(set(browser.execute_script(TIMES, card))) == 1


def test_the_scrubber_moves_all_videos(browser, opened, runs):
    opened(runs[0] / "index.html")
    card = get_card(browser)
    scrub = card.find_element("class name", "scrub")
    scrub.send_keys("\ue014" * 3)  # arrow to the right
    assert browser.execute_script(TIMES, card) == [3.5 / 8] * 4
    assert card.find_element("class name", "time").text.startswith("frame 4 of 9")
    scrub.send_keys("\ue010")  # end
    assert browser.execute_script(TIMES, card) == [8.5 / 8] * 4


def test_the_split_shows_the_source_beside_the_edit(browser, opened, runs):
    from io import BytesIO

    from PIL import Image, ImageChops, ImageStat
    from selenium.webdriver import ActionChains

    opened(runs[0] / "index.html")
    card = get_card(browser)
    source, *_, edit = card.find_elements("class name", "screen")

    def compare():
        images = [Image.open(BytesIO(one.screenshot_as_png)).convert("RGB").resize((60, 60)) for one in (source, edit)]
        return sum(ImageStat.Stat(ImageChops.difference(*images).crop((4, 4, 56, 56))).mean)

    apart = compare()
    split = card.find_element("class name", "split")
    split.send_keys("\ue010")
    time.sleep(0.3)
    assert compare() < 4 < apart
    ActionChains(browser).move_to_element_with_offset(edit, 0, 0).click().perform()
    assert abs(int(split.get_property("value")) - 50) <= 1
    keep_shot(browser, "split")


def test_sorting_and_finding(browser, opened, thousand):
    opened(thousand / "index.html")
    done = [record for record in read_results(thousand) if record["status"] == "done"]
    ids = "return [...document.querySelectorAll('.card:not([hidden]) h3')].map((one) => one.firstChild.textContent)"
    rows = "return [...document.querySelectorAll('#table tbody th')].map((one) => one.textContent)"
    assert browser.execute_script(ids) == [record["id"] for record in done]
    key = "metrics.reconstruction.psnr"
    wanted = [one["id"] for one in sorted(done, key=lambda one: one["metrics"]["reconstruction"]["psnr"])]
    button = browser.find_element("css selector", f"[data-sort='{key}']")
    button.click()
    assert browser.execute_script(ids) == browser.execute_script(rows) == wanted
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    browser.find_element("id", "order").click()
    shown = browser.execute_script(ids)
    values = {one["id"]: one["metrics"]["reconstruction"]["psnr"] for one in done}
    assert [values[one] for one in shown] == sorted(values.values(), reverse=True)
    browser.find_element("id", "find").send_keys("clip-0123")
    assert browser.execute_script(ids) == ["clip-0123"]


def test_the_table_shows_the_numbers_of_the_results(browser, opened, runs):
    opened(runs[0] / "index.html")
    list_all = "return [...document.querySelectorAll(arguments[0])]"
    keys = browser.execute_script(f"{list_all}.map((one) => one.dataset.sort)", "#table [data-sort]")
    cells = "[...row.cells].map((cell) => cell.textContent)"
    rows = browser.execute_script(f"{list_all}.map((row) => {cells})", "#table tbody tr")
    assert len(rows) == 3
    for (clip, *cells), record in zip(rows, read_results(runs[0]), strict=True):
        numbers = list_numbers(record)
        assert clip == record["id"]
        assert cells == [format_number(numbers.get(key), key) for key in keys[1:]]


def test_every_number_of_a_card_is_that_of_the_results(browser, opened, runs):
    opened(runs[0] / "index.html")
    check_cards(browser, read_results(runs[0]))


def test_keys_alone_will_do(browser, opened, runs):
    opened(runs[0] / "index.html")
    active = browser.switch_to.active_element
    active.send_keys("j")
    assert browser.switch_to.active_element.get_attribute("id") == "clip-0"
    browser.switch_to.active_element.send_keys("j")
    card = browser.switch_to.active_element
    assert card.get_attribute("id") == "clip-1"
    get_card(browser, 1)
    card.send_keys("\ue014\ue014\ue012")  # right, right, left
    assert browser.execute_script(TIMES, card) == [1.5 / 8] * 4
    card.send_keys("s")
    assert card.find_element("class name", "split").get_property("value") == "50"
    card.send_keys(" ")
    assert card.find_element("class name", "play").get_attribute("aria-pressed") == "true"
    card.send_keys(" ")
    assert card.find_element("class name", "play").get_attribute("aria-pressed") == "false"
    card.send_keys("k")
    assert browser.switch_to.active_element.get_attribute("id") == "clip-0"
    browser.switch_to.active_element.send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "find"


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1400, False)])
@pytest.mark.parametrize("page", ["index.html", "compare.html", "thousand"])
def test_nothing_overlaps(browser, opened, runs, thousand, page, width, dark):
    if page == "compare.html":
        write_page(runs)
    opened(thousand / "index.html" if page == "thousand" else runs[0] / page, width=width, dark=dark)
    name = f"{Path(page).stem}-{width}-{'dark' if dark else 'light'}"
    keep_shot(browser, name)
    card = get_card(browser, 1)
    card.find_element("class name", "split").send_keys("\ue00e" * 4)  # page up
    keep_shot(browser, f"{name}-card")
    assert browser.execute_script(FIND_OVERLAPS) == []
    assert browser.execute_script(COVERED) == []
    color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(color.removeprefix("rgb(").split(",")[0]) < 128) == dark
    browser.find_element("id", "theme").click()
    switched = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(switched.removeprefix("rgb(").split(",")[0]) < 128) == (not dark)
    browser.find_element("id", "theme").click()
    browser.execute_script("try { localStorage.clear() } catch {}")


def test_a_thousand_clips_open_at_once_and_load_what_is_seen(browser, opened, thousand):
    start = time.monotonic()
    busy_s = opened(thousand / "index.html")
    print(f"opened in {time.monotonic() - start:.2f} s, of which the page worked {busy_s:.2f} s")
    assert busy_s < 2
    loaded = "return document.querySelectorAll('video[src]').length"
    get_card(browser, 0)
    assert 4 <= browser.execute_script(loaded) < 60
    get_card(browser, 700)
    time.sleep(0.5)
    assert 4 <= browser.execute_script(loaded) < 60
    browser.find_element("id", "play-all").click()
    card = browser.find_element("id", "clip-700")
    wait(browser, "return arguments[0].querySelector('video').currentTime > 0.1", card)
    browser.find_element("id", "play-all").click()


def test_texts_from_outside_are_texts(browser, opened, thousand):
    opened(thousand / "index.html")
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    prompts = [one.text for one in get_card(browser).find_elements("class name", "prompt")]
    assert HOSTILE in prompts
    reason = browser.find_element("css selector", ".skipped dd").text
    assert reason == f"it is broken: {HOSTILE}"
    one = "const one = document.createElement('script'); one.text = 'hacked = 1'; document.body.append(one)"
    browser.execute_script(one)
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert [entry for entry in browser.get_log("browser") if "Content Security Policy" not in entry["message"]] == []


def test_a_comparison_plays_both_runs_and_one_file_holds_all(browser, opened, runs, tmp_path):
    write_page(runs, tmp_path / "both.html", embed=True)
    shutil.move(tmp_path / "both.html", tmp_path / "sent.html")
    opened(tmp_path / "sent.html")
    card = get_card(browser)
    titles = [one.text for one in card.find_elements("css selector", ".tile .title")]
    pairs = [f"{mark} {what}" for what in ("Reconstruction", "Edit 00", "Edit 01") for mark in "AB"]
    assert titles == ["A Source", *pairs]
    assert browser.execute_script("return document.querySelectorAll('a[href*=mp4]').length") == 0
    key = "metrics.reconstruction.psnr B - A"
    changes = browser.execute_script("return numbers[arguments[0]]", key)
    first, second = ([one["metrics"]["reconstruction"]["psnr"] for one in read_results(run)] for run in runs)
    assert changes == [after - before for before, after in zip(first, second, strict=True)]

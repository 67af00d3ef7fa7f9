"""The page of a real run over 200 clips, 20 of them broken, in a real browser: every number, every reason."""

from __future__ import annotations

import math
import time

import pytest

from tests.browser import FIND_OVERLAPS, get_card, keep_shot
from tests.many_clips import BROKEN, GOOD
from tests.page_numbers import check_cards

pytestmark = pytest.mark.slow


def test_every_number_of_every_card_is_that_of_the_results(browser, opened, many_clips):
    opened(many_clips.output / "index.html")
    records = many_clips.list("done")
    assert len(records) == GOOD
    check_cards(browser, records)


def test_every_number_to_sort_by_is_that_of_the_results(browser, opened, many_clips):
    opened(many_clips.output / "index.html")
    numbers, records = browser.execute_script("return numbers"), many_clips.list("done")
    compared = 0
    for key, values in numbers.items():
        part, *path = key.split(".")
        for value, record in zip(values, records, strict=True):
            if key == "diagnosis.level_errors":
                wanted = max(record["diagnosis"]["level_errors"])
            elif path == ["total"]:
                wanted = (max if part == "peak_gib" else sum)(record[part].values())
            elif key == "fps":
                wanted = int(record["fps"].split("/")[0]) / int(record["fps"].split("/")[1])
            else:
                wanted = record[part]
                for name in path:
                    wanted = wanted[int(name)] if isinstance(wanted, list) else wanted.get(name, "missing")
                wanted = {None: "Infinity", "missing": None}.get(wanted, wanted)
            assert value == pytest.approx(wanted, rel=1e-12) if isinstance(wanted, float) else value == wanted, key
            compared += 1
    assert compared > 20 * GOOD
    for key in ("metrics.reconstruction.psnr", "seconds.total"):
        start = time.monotonic()
        browser.find_element("css selector", f"[data-sort='{key}']").click()
        print(f"sorted in {time.monotonic() - start:.2f} s")
        order = browser.execute_script("return [...document.querySelectorAll('.card')].map((one) => one.dataset.card)")
        shown = [math.inf if numbers[key][int(k)] == "Infinity" else numbers[key][int(k)] for k in order]
        assert shown == sorted(shown)


def test_every_broken_clip_is_there_with_its_reason(browser, opened, many_clips):
    opened(many_clips.output / "index.html")
    texts = "[...row.children].map((one) => one.textContent)"
    pairs = f"return [...document.querySelectorAll('.skipped dl div')].map((row) => {texts})"
    skipped = many_clips.list("skipped")
    assert browser.execute_script(pairs) == [[record["id"], record["reason"]] for record in skipped]
    assert len(skipped) == BROKEN
    counts = browser.find_element("class name", "facts").text
    assert f"{GOOD} clips" in counts and f"{BROKEN} skipped" in counts


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_can_be_read_on_a_phone_and_on_a_desk(browser, opened, many_clips, width, dark):
    start = time.monotonic()
    busy_s = opened(many_clips.output / "index.html", width=width, dark=dark)
    print(f"opened in {time.monotonic() - start:.2f} s, of which the page worked {busy_s:.2f} s")
    name = f"many-{width}-{'dark' if dark else 'light'}"
    keep_shot(browser, name)
    browser.execute_script("document.querySelector('.skipped').scrollIntoView()")
    keep_shot(browser, f"{name}-skipped")
    for index in (0, 97, GOOD - 1):
        get_card(browser, index)
        keep_shot(browser, f"{name}-card-{index}")
    assert browser.execute_script(FIND_OVERLAPS) == []

"""The page of a real run over 200 clips, 20 of them broken, in a real browser: every number, every reason."""

from __future__ import annotations

import math
import time

import pytest

from tests.browser import FIND_OVERLAPS, get_card, keep_shot
from tests.many_clips import BROKEN, GOOD

pytestmark = pytest.mark.slow

READ_CARDS = """
cards.forEach((card) => playerOf(card));
const texts = (what, inside) => [...inside.querySelectorAll(what)].map((one) => one.textContent);
return cards.map((card) => ({
  id: card.querySelector("h3").firstChild.textContent,
  tiles: [...card.querySelectorAll(".tile")].map((tile) => ({
    title: texts(".title", tile)[0],
    prompt: texts(".prompt", tile)[0] ?? "",
    measures: [...tile.querySelectorAll(".measures div")].map((row) => [
      row.children[0].textContent, row.children[1].textContent, row.children[1].title,
    ]),
  })),
  stages: [...card.querySelectorAll(".stages tr")].map((row) => [...row.cells].map((cell) => cell.textContent)),
  plot: card.querySelector("svg")?.getAttribute("aria-label"),
  points: card.querySelector("polyline")?.getAttribute("points"),
  notes: texts(".notes li", card),
  told: texts(".more .quiet", card)[0],
}));
"""
NAMES = {"psnr": "PSNR", "ssim": "SSIM", "psnr_vs_vae": "PSNR to VAE", "ssim_vs_vae": "SSIM to VAE"}
NAMES |= {"psnr_vs_source": "PSNR to source", "ssim_vs_source": "SSIM to source"}


def list_measures(metrics):
    """What a tile tells of its metrics: the name, the rounded number and, exactly, the number."""
    told = {}
    for name, value in metrics.items():
        rounded = "equal" if value is None else f"{value:.2f} dB" if name.startswith("psnr") else f"{value:.4f}"
        told[NAMES[name]] = (rounded, math.inf if value is None else value)
    return told


def check_tiles(tiles, record):
    expected = [("Source", record["settings"]["source_prompt"] or "", record["metrics"]["vae"])]
    expected.append(("Reconstruction", "", record["metrics"]["reconstruction"]))
    for k, (prompt, metrics) in enumerate(zip(record["prompts"], record["metrics"]["edits"], strict=True)):
        expected.append((f"Edit {k:02d}", prompt, metrics))
    assert [(tile["title"], tile["prompt"]) for tile in tiles] == [(title, prompt) for title, prompt, _ in expected]
    for tile, (_, _, metrics) in zip(tiles, expected, strict=True):
        shown = {name: (rounded, float(exact)) for name, rounded, exact in tile["measures"]}
        assert shown == list_measures(metrics), record["id"]


def check_stages(rows, record):
    head, *rows, total = rows
    parts = {"NFE": record["nfe"], "Seconds": record["seconds"], "Peak GiB": record["peak_gib"]}
    parts = {title: numbers for title, numbers in parts.items() if numbers}
    assert head == ["Stage", *parts]

    def tell(title, number):
        return "-" if number is None else f"{number:,}" if title == "NFE" else f"{number:,.2f}"

    assert {row[0] for row in rows} == {stage for numbers in parts.values() for stage in numbers}
    for stage, *cells in rows:
        assert cells == [tell(title, numbers.get(stage)) for title, numbers in parts.items()], record["id"]
    sums = {title: (max if title == "Peak GiB" else sum)(numbers.values()) for title, numbers in parts.items()}
    assert total == ["total", *(tell(title, number) for title, number in sums.items())]


def test_every_number_of_every_card_is_that_of_the_results(browser, opened, many_clips):
    opened(many_clips.output / "index.html")
    records = many_clips.list("done")
    cards = browser.execute_script(READ_CARDS)
    assert [card["id"] for card in cards] == [record["id"] for record in records]
    assert len(cards) == GOOD
    for card, record in zip(cards, records, strict=True):
        check_tiles(card["tiles"], record)
        check_stages(card["stages"], record)
        assert card["notes"] == [*record["diagnosis"]["problems"], *record["warnings"]]
        assert card["told"].startswith(f"{record['frames']['count']} frames, ")
        assert f" fps, seed {record['seed']}" in card["told"]
        errors = record["diagnosis"]["level_errors"]
        assert f"at most {max(errors):.2g}" in card["plot"]
        assert len(card["points"].split()) == len(errors)


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

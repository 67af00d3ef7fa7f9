"""What the cards of a page tell is held against the results, number by number, by arithmetic of its own."""

from __future__ import annotations

import math

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


def check_cards(browser, records):
    """Open every card of the page at hand, and hold all that it tells against the records of the clips that are done.

    Args:
        browser: Has the page of one run open.
        records: As in ``results.jsonl``, in its order.
    """
    cards = browser.execute_script(READ_CARDS)
    assert [card["id"] for card in cards] == [record["id"] for record in records]
    for card, record in zip(cards, records, strict=True):
        check_tiles(card["tiles"], record)
        check_stages(card["stages"], record)
        assert card["notes"] == [*record["diagnosis"]["problems"], *record["warnings"]]
        assert card["told"].startswith(f"{record['frames']['count']} frames, ")
        assert f" fps, seed {record['seed']}" in card["told"]
        errors = record["diagnosis"]["level_errors"]
        assert f"at most {max(errors):.2g}" in card["plot"]
        assert len(card["points"].split()) == len(errors)

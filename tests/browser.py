"""A real browser for tests: Chromium without a window, and what is asked of every page that it opens."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium import webdriver

SHOTS = Path(__file__).parents[1] / "out" / "report"
"""Where screenshots are kept, to be looked at."""
TIMES = "return [...arguments[0].querySelectorAll('video')].map((video) => video.currentTime)"
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000"),
)

FIND_OVERLAPS = """
const shown = (one) => {
  const style = getComputedStyle(one), box = one.getBoundingClientRect();
  return box.width > 0 && box.height > 0 && !["absolute", "sticky"].includes(style.position);
};
const found = [];
for (const parent of document.querySelectorAll("body, body :not(svg, svg *, .screen *)")) {
  const boxes = [...parent.children].filter(shown).map((one) => [one, one.getBoundingClientRect()]);
  if (boxes.length > 60) boxes.length = 60;
  for (let i = 0; i < boxes.length; i++) for (let k = i + 1; k < boxes.length; k++) {
    const [a, b] = [boxes[i][1], boxes[k][1]];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 1) found.push([i, k].map((one) => boxes[one][0].outerHTML.slice(0, 80)).join(" and "));
  }
}
const wide = document.documentElement.scrollWidth;
if (wide > innerWidth) found.push(`${wide} pixels wide`);
return found;
"""


def start_browser(profile: Path) -> webdriver.Chrome:
    """Start Chromium with a new profile; both of its programs must be on the path."""
    # Here, since a default run collects the tests that import this file, without selenium.
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    assert all(programs), "a browser is missing: install Debian's packages `chromium` and `chromium-driver`"
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(programs[1]))
    browser.set_script_timeout(60)
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    return browser


def open_page(browser: webdriver.Chrome, path: Path, *, width: int = 1400, dark: bool = False) -> float:
    """Open a file in a window of a width; the seconds of the processor that the page took until it was laid out."""
    size = {"width": width, "height": 844 if width < 500 else 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get("about:blank")
    before = read_busy_s(browser)
    browser.get(path.as_uri())
    browser.execute_script("document.body.offsetHeight")
    return read_busy_s(browser) - before


def read_busy_s(browser: webdriver.Chrome) -> float:
    """How long the page's main thread has been at work, which other processes do not change."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def wait(browser, script, *arguments, seconds=20):
    """Wait until a script returns something true."""
    end = time.monotonic() + seconds
    while not (found := browser.execute_script(script, *arguments)):
        assert time.monotonic() < end, script
        time.sleep(0.05)
    return found


def get_card(browser, index=0):
    """Bring a card into view, and return it once its videos can be seen."""
    card = browser.find_element("id", f"clip-{index}")
    browser.execute_script("arguments[0].scrollIntoView()", card)
    videos = "const videos = [...arguments[0].querySelectorAll('video')];"
    wait(browser, f"{videos} return videos.length && videos.every((video) => video.readyState > 2)", card)
    return card


def keep_shot(browser, name):
    """Keep a screenshot of what is in view."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SHOTS / f"{name}.png"))

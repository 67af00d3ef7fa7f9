"""The bundled model knows moving shapes alone: who gives it anything else is told so before it works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddim_lightning.models.source import BUNDLED, resolve_model
from ddim_lightning.output.place import read_record
from ddim_lightning.report.console import say

_EXAMPLE = "zai-org/CogVideoX-5b"


def warn_of_natural(model: str, videos: Sequence[str | Path]) -> None:
    """Print a line where the bundled model is to edit what it does not know: what will come out, and what to take.

    Args:
        model: The model that is asked for.
        videos: The files and folders of frames that it is given; of moving shapes it knows those that `demo` made.
    """
    natural = [video for video in map(Path, videos) if not _is_made_of_shapes(video)] if _is_bundled(model) else []
    if not natural:
        return
    some = f"{len(natural)} of" if len(natural) < len(videos) else "the"
    what = natural[0].name if len(videos) == 1 else f"{some} {len(videos)} clips"
    comes = "a few frames of 64 x 64, blurred, with no regard to the prompt"
    better = f"for natural video take --model {_EXAMPLE}, on a GPU"
    say(f"warning: {model} knows moving shapes alone: of anything else in {what} come {comes}; {better}")


def _is_bundled(model: str) -> bool:
    try:
        return resolve_model(model) == BUNDLED
    except OSError:  # which is told where the model is looked for
        return False


def _is_made_of_shapes(video: Path) -> bool:
    """Whether a run of the bundled model made it from no file, as `demo` does; or from a file that was made so."""
    seen: set[Path] = set()
    while video not in seen:
        seen.add(video)
        record = read_record(video.absolute().parent)
        if record is None or not _is_bundled(str(record.get("settings", {}).get("model"))):
            return False
        if record["files"].get("input") is None:
            return True
        video = Path(record["files"]["input"])
    return False
